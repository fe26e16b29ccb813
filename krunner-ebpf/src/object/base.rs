//! What every object must have: its licence, and something to call on a panic that cannot happen.

/// Helpers that read kernel memory are for GPL-compatible programs only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The verifier refuses a program that could come here, since the loop has no end.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
