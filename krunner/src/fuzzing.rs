//! What the fuzz targets (`fuzz/`) run: for each parser of bytes that others wrote, a function that checks what holds for any
//! input. Only compiled for them and for tests, which run every committed input.
//!
//! An input of a parser of streams begins with [`CUTS`] bytes that say where the stream is cut. An input of two parts has a
//! NUL between them.

use crate::{config, jupyter, monitor, service, transport, wire};

/// Sizes of pieces of a stream, which repeat.
const CUTS: usize = 4;

macro_rules! targets {
    ($($name:ident: $run:expr;)*) => {
        $(
            /// Runs one input; panics if something does not hold.
            pub fn $name(input: &[u8]) {
                let run: fn(&[u8]) = $run;
                run(input);
            }
        )*

        /// All targets by name.
        pub const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name)),*];
    };
}

targets! {
    authorized_keys: |input| in_two(input, service::intrinsic::fuzzing::authorized_keys);
    btf: monitor::fuzzing::btf;
    cgroup_files: |input| in_text(input, monitor::fuzzing::cgroup_files);
    cmdline: monitor::fuzzing::cmdline;
    environ: config::fuzzing::environ;
    health_response: service::fuzzing::probe;
    intrinsic_ports: config::fuzzing::ports;
    journal: monitor::fuzzing::journal;
    jupyter_channel: |input| in_pieces(input, jupyter::fuzzing::channel);
    jupyter_long_text: |input| in_pieces(input, jupyter::fuzzing::long_text);
    kernelspec: jupyter::fuzzing::kernelspec;
    model_service: service::fuzzing::model;
    mountinfo: |input| in_two_texts(input, |text, cgroup| {
        monitor::fuzzing::tmpfs(text);
        monitor::fuzzing::mountinfo(text, cgroup);
    });
    node_socket: |input| in_pieces(input, monitor::fuzzing::node_socket);
    op: |input| in_two(input, wire::fuzzing::op);
    process_cgroup: |input| in_two_texts(input, monitor::fuzzing::process_cgroup);
    process_stat: monitor::fuzzing::stat;
    recorder_file: monitor::fuzzing::recording;
    recorder_records: |input| {
        let (damaged_at, lines) = input.split_first_chunk().unwrap_or((&[0; 2], input));
        monitor::fuzzing::records(lines, u16::from_le_bytes(*damaged_at));
    };
    ring_record: monitor::fuzzing::ring_record;
    service_definition: |input| in_two(input, service::fuzzing::definition);
    ssh_config: |input| in_two(input, service::intrinsic::fuzzing::ssh_config);
    template: |input| in_text(input, service::fuzzing::template);
    zmtp_scanner: |input| in_pieces(input, transport::fuzzing::scanner);
    zmtp_subscriber: |input| in_pieces(input, transport::fuzzing::subscriber);
}

fn in_pieces(input: &[u8], run: fn(&[&[u8]])) {
    let (cuts, mut stream) = input.split_at(input.len().min(CUTS));
    let mut pieces = Vec::new();
    for cut in cuts.iter().cycle() {
        let (piece, rest) = stream.split_at(stream.len().min(usize::from(*cut) + 1));
        if piece.is_empty() {
            break;
        }
        pieces.push(piece);
        stream = rest;
    }
    run(&pieces);
}

fn in_two(input: &[u8], run: fn(&[u8], &[u8])) {
    let mut parts = input.splitn(2, |byte| *byte == 0);
    run(parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
}

fn in_text(input: &[u8], run: fn(&str)) {
    if let Ok(text) = str::from_utf8(input) {
        run(text);
    }
}

fn in_two_texts(input: &[u8], run: fn(&str, &str)) {
    if let Ok(text) = str::from_utf8(input) {
        let (first, second) = text.split_once('\0').unwrap_or((text, ""));
        run(first, second);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Seeds, and inputs that once failed.
    #[test]
    fn every_committed_input_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, run) in TARGETS {
            let files = fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("no seeds of {name}: {error}"));
            for file in files.map(|entry| entry.unwrap().path()) {
                println!("{}", file.display());
                run(&fs::read(&file).unwrap());
            }
        }
    }

    #[test]
    fn every_target_has_a_binary_and_is_the_only_one_with_its_corpus() {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let mut known: Vec<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        known.sort();
        for (folder, suffix) in [("fuzz_targets", ".rs"), ("corpus", "")] {
            let files = fs::read_dir(fuzz.join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> =
                files.map(|name| name.to_str().unwrap().trim_end_matches(suffix).to_owned()).collect();
            names.sort();
            assert_eq!(names, known, "{folder}");
        }
        let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        for name in known {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name} is not in fuzz/Cargo.toml");
        }
    }
}
