//! The languages with a program of each kind. Every one is run as a file in batch mode and as a snippet in query mode.

use std::path::PathBuf;

use krunner_tests::host;

/// A language and what its programs do.
pub(super) struct Language {
    pub(super) name: &'static str,
    /// `RUNTIME_PATH` on a Debian machine.
    pub(super) program: fn() -> Result<PathBuf, String>,
    /// The file that `*` looks for.
    pub(super) main: &'static str,
    /// Whether `build *` needs the file.
    pub(super) builds: bool,
    /// Whether `code` runs without a Jupyter kernel.
    pub(super) queries: bool,
    /// Prints `out`, says `err` where `has_stderr`, and exits with 3.
    pub(super) greets: &'static str,
    /// Prints 20,480 lines of 1,023 `x`.
    pub(super) floods: &'static str,
    /// Writes a line to the file `started`, and never ends.
    pub(super) loops: &'static str,
    /// Does not compile, or fails at once.
    pub(super) broken: &'static str,
    /// Said about `broken`.
    pub(super) complaint: &'static str,
    /// Whether programs can write to stderr.
    pub(super) has_stderr: bool,
    /// The exit code of `greets` as a snippet, where the tool in between has its own.
    pub(super) snippet_exit: i64,
    /// Exit code of `loops` when it is interrupted: as a file, as a snippet.
    pub(super) interrupted: [i64; 2],
}

/// A compiled language of the plainest kind; rows say what is different.
const PLAIN: Language = Language {
    name: "",
    program: || Err(String::new()),
    main: "",
    builds: true,
    queries: true,
    greets: "",
    floods: "",
    loops: "",
    broken: "",
    complaint: "missing",
    has_stderr: true,
    snippet_exit: 3,
    interrupted: [-2, -2],
};

pub(super) const C: Language = Language {
    name: "c",
    program: || host::program("gcc"),
    main: "main.c",
    greets: "#include <stdio.h>\nint main(void) { puts(\"out\"); fputs(\"err\\n\", stderr); return 3; }\n",
    floods: "#include <stdio.h>\n#include <string.h>\nint main(void) { char line[1024]; memset(line, 'x', 1023);\n\
             line[1023] = '\\n'; for (int i = 0; i < 20480; i++) fwrite(line, 1, 1024, stdout); return 0; }\n",
    loops: "#include <stdio.h>\nint main(void) { FILE *f = fopen(\"started\", \"w\"); fputs(\"1\\n\", f); fclose(f);\n\
            for (;;) ; }\n",
    broken: "int main(void) { return missing; }\n",
    ..PLAIN
};

pub(super) const CPP: Language = Language {
    name: "cpp",
    program: || host::program("g++"),
    main: "main.cpp",
    greets: "#include <iostream>\nint main() { std::cout << \"out\\n\"; std::cerr << \"err\\n\"; return 3; }\n",
    floods: "#include <iostream>\n#include <string>\nint main() { std::string line(1023, 'x');\n\
             for (int i = 0; i < 20480; i++) std::cout << line << '\\n'; }\n",
    loops: "#include <fstream>\nint main() { { std::ofstream f(\"started\"); f << \"1\\n\"; }\n\
            for (volatile int i = 0;; i = 1) ; }\n",
    broken: "int main() { return missing; }\n",
    ..PLAIN
};

pub(super) const GOLANG: Language = Language {
    name: "golang",
    program: || host::program("go"),
    main: "main.go",
    greets: "package main\nimport (\"fmt\"; \"os\")\nfunc main() { fmt.Println(\"out\"); fmt.Fprintln(os.Stderr, \"err\"); \
             os.Exit(3) }\n",
    floods: "package main\nimport (\"bufio\"; \"os\"; \"strings\")\nfunc main() { line := strings.Repeat(\"x\", 1023)\n\
             w := bufio.NewWriter(os.Stdout); defer w.Flush()\nfor i := 0; i < 20480; i++ { w.WriteString(line + \"\\n\") } }\n",
    loops: "package main\nimport \"os\"\nfunc main() { os.WriteFile(\"started\", []byte(\"1\\n\"), 0o600)\nfor {} }\n",
    broken: "package main\nfunc main() { missing() }\n",
    // `go run` says what the program exited with, and exits with 1.
    snippet_exit: 1,
    interrupted: [-2, 1],
    ..PLAIN
};

pub(super) const RUST: Language = Language {
    name: "rust",
    program: host::rustc,
    main: "main.rs",
    greets: "fn main() { println!(\"out\"); eprintln!(\"err\"); std::process::exit(3); }\n",
    floods: "fn main() { let line = \"x\".repeat(1023); for _ in 0..20480 { println!(\"{line}\"); } }\n",
    loops: "fn main() { std::fs::write(\"started\", \"1\\n\").unwrap(); loop { std::hint::spin_loop(); } }\n",
    broken: "fn main() { missing(); }\n",
    ..PLAIN
};

pub(super) const JAVA: Language = Language {
    name: "java",
    program: || host::program("java").and_then(|java| host::program("javac").map(|_| java)),
    main: "Main.java",
    greets: "public class Main { public static void main(String[] a) {\nSystem.out.println(\"out\"); \
             System.err.println(\"err\"); System.exit(3); } }\n",
    floods: "public class Main { public static void main(String[] a) {\n\
             String line = new String(new char[1023]).replace('\\0', 'x');\n\
             for (int i = 0; i < 20480; i++) System.out.println(line); } }\n",
    loops: "import java.nio.file.*;\npublic class Main { public static void main(String[] a) throws Exception {\n\
            Files.write(Paths.get(\"started\"), \"1\\n\".getBytes()); while (true) ; } }\n",
    broken: "public class Main { int x = missing; }\n",
    // The JVM's handler of SIGINT exits by itself.
    interrupted: [130, 130],
    ..PLAIN
};

pub(super) const HASKELL: Language = Language {
    name: "haskell",
    program: || host::program("ghc"),
    main: "main.hs",
    greets: "import System.Exit\nimport System.IO\nmain = putStrLn \"out\" >> hPutStrLn stderr \"err\" >> \
             exitWith (ExitFailure 3)\n",
    // `runhaskell` writes character by character unless told otherwise.
    floods: "import System.IO\nmain = hSetBuffering stdout (BlockBuffering Nothing) >> \
             mapM_ (const (putStrLn line)) [1 .. 20480 :: Int]\n  where line = replicate 1023 'x'\n",
    loops: "import Control.Concurrent\nimport Control.Monad\nmain = writeFile \"started\" \"1\\n\" >> \
            forever (threadDelay 1000)\n",
    broken: "main = missing\n",
    ..PLAIN
};

/// An interpreted language: there is nothing to build.
const SCRIPT: Language = Language { builds: false, ..PLAIN };

pub(super) const LUA: Language = Language {
    name: "lua",
    program: || host::program("lua5.4"),
    main: "main.lua",
    greets: "print('out')\nio.stderr:write('err\\n')\nos.exit(3)\n",
    floods: "local line = ('x'):rep(1023)\nfor _ = 1, 20480 do print(line) end\n",
    loops: "local f = io.open('started', 'w')\nf:write('1\\n')\nf:close()\nwhile true do end\n",
    broken: "missing()\n",
    // `interrupted!`, as an error of the script.
    interrupted: [1, 1],
    ..SCRIPT
};

pub(super) const NODEJS: Language = Language {
    name: "nodejs",
    program: || host::program("node"),
    main: "main.js",
    greets: "console.log('out');\nconsole.error('err');\nprocess.exitCode = 3;\n",
    floods: "const line = 'x'.repeat(1023);\nfor (let i = 0; i < 20480; i++) console.log(line);\n",
    loops: "require('fs').writeFileSync('started', '1\\n');\nwhile (true);\n",
    broken: "missing();\n",
    ..SCRIPT
};

pub(super) const OCTAVE: Language = Language {
    name: "octave",
    program: || host::program("octave-cli"),
    main: "main.m",
    greets: "puts('out'); puts(\"\\n\");\nfputs(stderr, \"err\\n\");\nexit(3);\n",
    floods: "line = [repmat('x', 1, 1023) \"\\n\"];\nfor i = 1:20480\n  puts(line);\nend\n",
    loops: "f = fopen('started', 'w');\nfputs(f, \"1\\n\");\nfclose(f);\nwhile true\n  x = 1;\nend\n",
    broken: "missing();\n",
    interrupted: [1, 1],
    ..SCRIPT
};

pub(super) const PHP: Language = Language {
    name: "php",
    program: || host::program("php"),
    main: "main.php",
    greets: "<?php echo \"out\\n\"; fwrite(STDERR, \"err\\n\"); exit(3);\n",
    floods: "<?php $line = str_repeat('x', 1023) . \"\\n\"; for ($i = 0; $i < 20480; $i++) echo $line;\n",
    loops: "<?php file_put_contents('started', \"1\\n\"); while (true);\n",
    broken: "<?php missing();\n",
    ..SCRIPT
};

pub(super) const R: Language = Language {
    name: "r",
    program: || host::program("R"),
    main: "main.R",
    queries: false,
    greets: "cat('out\\n')\nwrite('err', stderr())\nquit(status = 3)\n",
    floods: "line <- paste0(strrep('x', 1023), '\\n')\nfor (i in 1:20480) cat(line)\n",
    loops: "cat('1\\n', file = 'started')\nwhile (TRUE) NULL\n",
    broken: "missing()\n",
    interrupted: [1, 1],
    ..SCRIPT
};

pub(super) const PYTHON: Language = Language {
    name: "python",
    program: host::user_python,
    main: "main.py",
    queries: false,
    greets: "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)\n",
    floods: "for _ in range(20480): print('x' * 1023)\n",
    loops: "with open('started', 'w') as f: f.write('1\\n')\nwhile True: pass\n",
    broken: "missing()\n",
    ..SCRIPT
};

pub(super) const SCHEME: Language = Language {
    name: "scheme",
    program: || host::program("mit-scheme"),
    main: "main.scm",
    greets: "(display \"out\")\n(newline)\n(exit 3)\n",
    floods: "(define line (make-string 1023 #\\x))\n(do ((i 0 (+ i 1))) ((= i 20480)) (write-string line) (newline))\n",
    // The file is written in the loop: an interrupt ahead of it would be spent on the prompt.
    loops: "(define (note) (call-with-output-file \"started\" (lambda (port) (write-string \"1\\n\" port))))\n\
            (let loop () (note) (loop))\n",
    broken: "(missing)\n",
    // It has one console, for all it says.
    has_stderr: false,
    // An interrupt leads back to its prompt, where it reads on: `;Quit!`, and in time the end of the file.
    interrupted: [0, 0],
    ..SCRIPT
};
