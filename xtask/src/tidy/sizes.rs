//! Lines of Rust by part: the product, its unit tests, the suites, and the tools of the workspace.

use std::fmt;

use super::source::Source;

/// Lines of Rust, blank ones and comments included.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    product: usize,
    unit_tests: usize,
    suites: usize,
    xtask: usize,
}

impl Sizes {
    pub(super) fn of(sources: &[Source]) -> Self {
        let mut sizes = Self::default();
        for source in sources.iter().filter(|source| source.is_rust()) {
            sizes.add(source);
        }
        sizes
    }

    fn add(&mut self, source: &Source) {
        let (path, lines) = (source.path(), source.text().lines().count());
        let file = path.rsplit('/').next().unwrap_or_default();
        if path.starts_with("tests/") || path.starts_with("fuzz/") {
            self.suites += lines;
        } else if path.starts_with("xtask/") {
            self.xtask += lines;
        } else if file.ends_with("_tests.rs") || file == "testing.rs" {
            self.unit_tests += lines;
        } else {
            let product = source.code_without_tests().lines().count();
            self.product += product;
            self.unit_tests += lines - product;
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { product, unit_tests, suites, xtask } = self;
        let hundredths = 100 * (suites + xtask) / (*product).max(1);
        write!(
            f,
            "product {product}, unit tests {unit_tests}, suites {suites}, xtask {xtask}; suites and xtask: {}.{:02} lines for each of the product",
            hundredths / 100,
            hundredths % 100
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_their_part() {
        let sources = [
            Source::new("krunner/src/a.rs", "//! A.\nfn f() {}\n\n#[cfg(test)]\nmod tests {\n}\n"),
            Source::new("krunner/src/a_tests.rs", "//! T.\n"),
            Source::new("tests/suites/b.rs", "//! B.\n\n"),
            Source::new("xtask/src/c.rs", "//! C.\n"),
            Source::new("README.md", "x\n"),
        ];
        let sizes = Sizes::of(&sources);
        assert_eq!(sizes, Sizes { product: 2, unit_tests: 5, suites: 2, xtask: 1 });
        assert!(sizes.to_string().ends_with("1.50 lines for each of the product"), "{sizes}");
    }
}
