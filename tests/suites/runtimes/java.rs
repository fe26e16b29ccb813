//! Java snippets: the class that is started, and `System.in`, which asks the user.

use std::fs;

use krunner_tests::{Message, Raw, Runner, Setup, Transcript, require};

use super::{session, step, table, visible};

fn java() -> Result<(Runner, Raw), String> {
    Ok(session(Setup::new("java").runtime((table::JAVA.program)()?)))
}

/// Reads up to the next request for input, and answers it.
fn answer(raw: &mut Raw, text: &str) -> Transcript {
    let asked = raw.read_until(|message| message.kind == "waiting-input" || message.ends_step());
    assert!(asked.ends().is_empty(), "it ended without asking: {}", asked.stderr());
    raw.op("input", text);
    asked
}

#[test]
fn system_in_asks_for_each_line() {
    let (runner, mut raw) = require!(java());
    raw.op(
        "code",
        "import java.util.Scanner;\npublic class Ask {\n  public static void main(String[] a) {\n    Scanner in = new \
         Scanner(System.in);\n    System.out.print(\"first? \");\n    String first = in.nextLine();\n    \
         System.out.print(\"second? \");\n    System.out.println(first + '|' + in.nextLine() + '|' + in.nextInt());\n  \
         }\n}\n",
    );
    assert_eq!(answer(&mut raw, "één").stdout(), "first? ", "the prompt is there before the question");
    assert_eq!(answer(&mut raw, "둘 two").stdout(), "second? ");
    answer(&mut raw, "42");
    let run = raw.read_until(Message::ends_step);
    assert_eq!((run.codes(), run.stdout().as_str()), (vec![("finished", 0)], "één|둘 two|42\n"), "{}", run.stderr());
    assert!(visible(&runner).is_empty(), "{:?}", visible(&runner));
}

#[test]
fn system_in_takes_texts_of_any_length() {
    let (_runner, mut raw) = require!(java());
    raw.op(
        "code",
        "import java.io.*;\npublic class Long { public static void main(String[] a) throws IOException {\n\
         BufferedReader in = new BufferedReader(new InputStreamReader(System.in, \"UTF-8\"));\n\
         String line = in.readLine(); System.out.println(line.length() + \" \" + line.hashCode()); } }\n",
    );
    let text = "ab한".repeat((1 << 20) / 5);
    answer(&mut raw, &text);
    // As `String.hashCode` is documented; every character is one UTF-16 unit.
    let hash = text.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    let run = raw.read_until(Message::ends_step);
    assert_eq!(run.stdout(), format!("{} {hash}\n", text.encode_utf16().count()), "{}", run.stderr());
}

#[test]
fn system_in_without_the_socket_is_at_its_end_and_says_why() {
    let (runner, mut raw) = require!(java());
    raw.sync();
    let socket = runner.root().join("tmp/bai-user-input.sock");
    // One that was removed would be made again.
    fs::rename(runner.root().join("tmp"), runner.root().join("gone")).expect("the input socket's folder");
    let code = "public class Read { public static void main(String[] a) throws Exception { \
                System.out.println(System.in.read()); } }";
    let run = step(&mut raw, "code", code);
    assert_eq!((run.codes(), run.stdout().as_str()), (vec![("finished", 0)], "-1\n"));
    assert!(run.stderr().contains(socket.to_str().expect("UTF-8")), "{}", run.stderr());
}

#[test]
fn classes_are_started_whatever_they_are_called() {
    let (_runner, mut raw) = require!(java());
    let main = "public static void main(String[] a) { System.out.println(";
    for (code, expected) in [
        (
            format!("// public class No {{\npublic  class  Yes {{ {main}\"public class No {{\"); }} }}"),
            "public class No {",
        ),
        (format!("package a.b;\npublic class Packed {{ {main}Packed.class.getName()); }} }}"), "a.b.Packed"),
        (format!("class Helper {{ }}\nclass Hidden {{ {main}a.length); }} }}"), "0"),
        (format!("public class Größe {{ {main}\"ü\"); }} }}"), "ü"),
    ] {
        let run = step(&mut raw, "code", &code);
        assert_eq!(run.codes(), [("finished", 0)], "{code}: {}", run.stderr());
        assert_eq!(run.stdout(), format!("{expected}\n"), "{code}");
    }
}

#[test]
fn uncaught_exception_shows_the_users_calls_only() {
    let (_runner, mut raw) = require!(java());
    let code =
        "public class Fails { public static void main(String[] a) {\nthrow new IllegalStateException(\"why\"); } }";
    let run = step(&mut raw, "code", code);
    assert_eq!(run.codes(), [("finished", 1)]);
    let trace = "Exception in thread \"main\" java.lang.IllegalStateException: why\n\tat Fails.main(Fails.java:2)\n";
    assert_eq!(run.stderr(), trace);
}

#[test]
fn snippet_without_a_class_to_start_says_so() {
    let (_runner, mut raw) = require!(java());
    for (code, said) in [("", "no class main"), ("public class Empty { }", "no main method in class Empty")] {
        let run = step(&mut raw, "code", code);
        assert_eq!(run.codes(), [("finished", 1)], "{code}");
        assert!(run.stderr().contains(said), "{}", run.stderr());
    }
}

#[test]
fn snippet_sees_the_classes_of_the_working_directory() {
    let (runner, mut raw) = require!(java());
    runner.write("Tool.java", "public class Tool { public static String name() { return \"tool\"; } }\n");
    assert_eq!(step(&mut raw, "build", "*").codes(), [("build-finished", 0)]);
    let code = "public class Uses { public static void main(String[] a) { System.out.println(Tool.name()); } }";
    assert_eq!(step(&mut raw, "code", code).stdout(), "tool\n");
}
