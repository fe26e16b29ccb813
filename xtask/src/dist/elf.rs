//! Checks that a binary runs in any container: right processor, no shared libraries, stripped, and small.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Architecture, Endianness, Object as _, ObjectSection as _};

use crate::musl::Arch;

/// The size limit. The binary is copied into containers and mapped by each of them.
const MAX_BYTES: usize = 12 << 20;

/// Describes everything that makes the binary unfit for release.
pub(super) fn problems(binary: &Path, arch: Arch) -> Result<Vec<String>> {
    let content = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let elf = ElfFile64::<Endianness>::parse(&*content)
        .with_context(|| format!("{} is not an ELF file", binary.display()))?;
    let mut problems = Vec::new();
    if content.len() > MAX_BYTES {
        problems.push(format!("{} bytes, above the limit of {MAX_BYTES}", content.len()));
    }
    let wanted = match arch {
        Arch::X86_64 => Architecture::X86_64,
        Arch::Aarch64 => Architecture::Aarch64,
    };
    if elf.architecture() != wanted {
        problems.push(format!("built for {:?}, not {arch}", elf.architecture()));
    }
    if needs_a_loader(&elf) {
        problems.push("needs a dynamic loader and shared libraries".to_owned());
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
    fn a_dynamically_linked_program_is_unfit() {
        // This test binary is linked with the system's libc and not stripped.
        let own = std::env::current_exe().unwrap();
        let native = *Arch::ALL.iter().find(|arch| arch.is_native()).unwrap();
        let problems = problems(&own, native).unwrap().join("\n");
        assert!(problems.contains("needs a dynamic loader"), "{problems}");
        assert!(problems.contains("not stripped"), "{problems}");
        assert!(!problems.contains("built for"), "{problems}");
    }

    #[test]
    fn the_wrong_processor_is_reported() {
        let other = *Arch::ALL.iter().find(|arch| !arch.is_native()).unwrap();
        let problems = problems(&std::env::current_exe().unwrap(), other).unwrap().join("\n");
        assert!(problems.contains("built for"), "{problems}");
    }

    #[test]
    fn a_file_that_is_not_elf_is_an_error() {
        let error = problems(Path::new("/etc/passwd"), Arch::X86_64).unwrap_err().to_string();
        assert_eq!(error, "/etc/passwd is not an ELF file");
    }
}
