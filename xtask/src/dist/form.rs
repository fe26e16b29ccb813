//! What a binary has to be to run in whatever container: for that processor, in need of nobody's libraries, and small.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Architecture, Endianness, Object as _, ObjectSection as _};

use crate::musl::Arch;

/// It is copied into containers and mapped by each of them.
const MAX_BYTES: usize = 12 << 20;

/// What is wrong with it.
pub(super) fn problems(binary: &Path, arch: Arch) -> Result<Vec<String>> {
    let content = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let elf = ElfFile64::<Endianness>::parse(&*content).with_context(|| format!("{} is no ELF", binary.display()))?;
    let mut problems = Vec::new();
    if content.len() > MAX_BYTES {
        problems.push(format!("{} bytes, and at most {MAX_BYTES} are handed out", content.len()));
    }
    let wanted = match arch {
        Arch::X86_64 => Architecture::X86_64,
        Arch::Aarch64 => Architecture::Aarch64,
    };
    if elf.architecture() != wanted {
        problems.push(format!("made for {:?}, not {arch}", elf.architecture()));
    }
    if needs_a_loader(&elf) {
        problems.push("needs a loader and shared libraries".to_owned());
    }
    let leftovers = elf.sections().filter_map(|section| section.name().ok());
    let leftovers: Vec<_> = leftovers.filter(|name| *name == ".symtab" || name.starts_with(".debug_")).collect();
    if !leftovers.is_empty() {
        problems.push(format!("not stripped: has {}", leftovers.join(", ")));
    }
    Ok(problems)
}

fn needs_a_loader(elf: &ElfFile64<'_, Endianness>) -> bool {
    type Header = <FileHeader64<Endianness> as object::read::elf::FileHeader>::ProgramHeader;
    let kind = |header: &Header| header.p_type(elf.endian());
    elf.elf_program_headers().iter().any(|header| kind(header) == PT_INTERP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_this_machines_own_cannot_be_handed_out() {
        // This test's: linked with the system's library, and not stripped.
        let own = std::env::current_exe().unwrap();
        let native = *Arch::ALL.iter().find(|arch| arch.is_native()).unwrap();
        let problems = problems(&own, native).unwrap().join("\n");
        assert!(problems.contains("needs a loader"), "{problems}");
        assert!(problems.contains("not stripped"), "{problems}");
        assert!(!problems.contains("made for"), "{problems}");
    }

    #[test]
    fn another_processor_is_seen() {
        let other = *Arch::ALL.iter().find(|arch| !arch.is_native()).unwrap();
        let problems = problems(&std::env::current_exe().unwrap(), other).unwrap().join("\n");
        assert!(problems.contains("made for"), "{problems}");
    }

    #[test]
    fn what_is_no_program_is_named() {
        let error = problems(Path::new("/etc/passwd"), Arch::X86_64).unwrap_err().to_string();
        assert_eq!(error, "/etc/passwd is no ELF");
    }
}
