//! What a release is made of.

#[cfg_attr(not(test), expect(dead_code, reason = "`cargo xtask dist` calls it"))]
pub(crate) mod pages;
