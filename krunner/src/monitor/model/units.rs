//! Sizes and numbers as text. Pure.

pub(in crate::monitor) const MIB: u64 = 1024 * 1024;

/// Mebibytes as in `ps`, rounded to the nearest; less than half of one is `0m`.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{}m", grouped(bytes.saturating_add(MIB / 2) / MIB))
}

/// Mebibytes, or `?`.
pub(in crate::monitor) fn mib_or_unknown(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "?".to_owned(), mib)
}

/// Adds thousands separators: `1,234,567`.
pub(in crate::monitor) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
