//! A script that is one `docker run` (docs.docker.com/reference/cli/docker/container/run).

use std::collections::BTreeMap;
use std::vec::IntoIter;

use super::rights::{Given, Recipe, capabilities, command, fixed, mebibytes, promise};
use crate::container::Spec;

/// What the flags add up to.
#[derive(Default)]
struct Flags {
    labels: BTreeMap<String, String>,
    drop: Vec<String>,
    add: Vec<String>,
    is_privileged: bool,
    is_unconfined: bool,
    user_id: Option<u32>,
    memory_mib: Option<u64>,
}

/// Reads it. What has to do with neither rights nor views of the machine is looked at and left: the name, the policy
/// for restarts, and the network, which is the tests' own.
pub(super) fn recipe(script: &str) -> Result<Recipe, String> {
    // `shlex` treats a line continuation as a word.
    let words = shlex::split(&script.replace("\\\n", " ")).ok_or("a quote has no end")?;
    let mut words = words.into_iter();
    for expected in ["exec", "docker", "run"] {
        words.next().filter(|word| word == expected).ok_or_else(|| format!("no `{expected}` where it should be"))?;
    }
    let mut flags = Flags::default();
    let mut spec = Spec::plain(0);
    let image = loop {
        let word = words.next().ok_or("no image")?;
        if !word.starts_with('-') {
            break word;
        }
        spec = flags.take(&word, &mut words, spec)?;
    };
    flags.into_recipe(spec, image, &words.collect::<Vec<String>>())
}

impl Flags {
    fn take(&mut self, flag: &str, words: &mut IntoIter<String>, spec: Spec) -> Result<Spec, String> {
        match flag {
            "--detach" => return Ok(spec),
            "--privileged" => {
                self.is_privileged = true;
                return Ok(spec);
            }
            "--read-only" => return Ok(spec.read_only()),
            _ => {}
        }
        let value = words.next().ok_or_else(|| format!("{flag} has no value"))?;
        let strange = || Err(format!("what {flag} {value} means is not known here"));
        match (flag, value.as_str()) {
            ("--name", _) | ("--restart", "unless-stopped") | ("--network", "none") | ("--cgroupns", "host") => {}
            ("--label", label) => {
                let (name, value) = label.split_once('=').ok_or("a label has no value")?;
                self.labels.insert(name.to_owned(), value.to_owned());
            }
            ("--user", ids) => self.user_id = Some(user(ids)?),
            ("--memory", memory) => self.memory_mib = Some(mebibytes(memory, "m")?),
            ("--cap-drop", name) => self.drop.push(name.to_owned()),
            ("--cap-add", name) => self.add.push(name.to_owned()),
            ("--pid", "host") => return Ok(spec.host_pids()),
            ("--security-opt", "no-new-privileges") => return Ok(spec.no_new_privileges()),
            ("--security-opt", "seccomp=unconfined") => self.is_unconfined = true,
            ("--volume", volume) => match volume.split(':').collect::<Vec<_>>()[..] {
                [from, to, "ro"] if from == to => return Ok(spec.show(from)),
                _ => return strange(),
            },
            _ => return strange(),
        }
        Ok(spec)
    }

    fn into_recipe(self, spec: Spec, image: String, words: &[String]) -> Result<Recipe, String> {
        fixed(&image)?;
        let (tracer, confidence) = promise(&self.labels)?;
        Ok(Recipe {
            tracer,
            confidence,
            command: command(&image, words),
            image: Some(image),
            user_id: self.user_id.ok_or("no --user: it would be the image's")?,
            memory_mib: self.memory_mib.ok_or("no --memory")?,
            spec,
            given: if self.is_privileged { Given::All } else { capabilities(&self.drop, &self.add)? },
            is_confined: !self.is_unconfined,
        })
    }
}

/// Both numbers, and the same: others would be a user of the image's.
fn user(ids: &str) -> Result<u32, String> {
    let (user, group) = ids.split_once(':').ok_or_else(|| format!("--user {ids} has no group"))?;
    let number = user.parse().map_err(|_| format!("--user {ids} is no number"))?;
    if user == group { Ok(number) } else { Err(format!("--user {ids}: tests know one number for both")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: &str = "--label krunner/tracer=bpf --label krunner/confidence=confirmed --user 0:0 --memory 1m";

    fn complaint(flags: &str, image: &str) -> String {
        recipe(&format!("# why\nexec docker run {LABELS} {flags} {image}")).unwrap_err()
    }

    #[test]
    fn nothing_is_ignored() {
        assert!(recipe(&format!("exec docker run {LABELS} \\\n krunner:1 monitor")).is_ok());
        assert!(complaint("--userns host", "krunner:1").contains("--userns host"));
        assert!(complaint("--pid container:other", "krunner:1").contains("--pid"));
        assert!(complaint("--security-opt seccomp=own.json", "krunner:1").contains("seccomp=own.json"));
        assert!(complaint("--volume /a:/b:ro", "krunner:1").contains("--volume"));
        assert!(complaint("--cap-add BFP", "krunner:1").contains("BFP is no capability"));
        assert!(complaint("--cap-drop CHOWN", "krunner:1").contains("CHOWN"));
        assert!(complaint("--label a=b", "krunner:1").contains("label a"));
    }

    #[test]
    fn an_image_has_a_version() {
        assert!(complaint("", "krunner").contains("no tag"));
        assert!(complaint("", "registry:5000/krunner").contains("no tag"));
        assert!(complaint("", "krunner:latest").contains("another one every day"));
    }
}
