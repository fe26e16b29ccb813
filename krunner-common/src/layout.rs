//! `repr(C)` structs without padding, shared by the eBPF programs and user space.
//!
//! Without padding no uninitialized kernel memory leaves the kernel, and records can be decoded field by field in safe
//! code. Integers have native byte order, because both sides run on the same machine.

/// A type with a fixed byte representation.
pub trait Layout: Sized {
    /// Encoded size in bytes.
    const SIZE: usize;

    /// Decodes a value from the front of `bytes` and advances past it; `None`, without advancing, if there are too few.
    fn take(bytes: &mut &[u8]) -> Option<Self>;

    /// Writes the value to the front of `out`; does nothing if it does not fit.
    fn put(&self, out: &mut [u8]);

    /// Decodes a record from the front of `bytes`. Trailing bytes are ignored: a later version may append fields.
    #[must_use]
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        Self::take(&mut bytes)
    }
}

macro_rules! integers {
    ($($type:ty),*) => { $(
        impl Layout for $type {
            const SIZE: usize = size_of::<$type>();

            fn take(bytes: &mut &[u8]) -> Option<Self> {
                let (head, rest) = bytes.split_first_chunk()?;
                *bytes = rest;
                Some(Self::from_ne_bytes(*head))
            }

            fn put(&self, out: &mut [u8]) {
                self.to_ne_bytes().put(out);
            }
        }
    )* };
}

integers!(u8, i16, u16, u32, u64);

impl<const N: usize> Layout for [u8; N] {
    const SIZE: usize = N;

    fn take(bytes: &mut &[u8]) -> Option<Self> {
        let (head, rest) = bytes.split_first_chunk()?;
        *bytes = rest;
        Some(*head)
    }

    fn put(&self, out: &mut [u8]) {
        if let Some(head) = out.first_chunk_mut() {
            *head = *self;
        }
    }
}

/// Declares a `repr(C)` struct of the given size, checks at compile time that it has that size and no
/// padding, and implements [`Layout`] for it.
macro_rules! layout {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $size:literal {
            $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        const _: () = {
            assert!(size_of::<$name>() == $size, concat!(stringify!($name), " has another size"));
            assert!(0 $( + size_of::<$type>() )* == $size, concat!(stringify!($name), " has padding"));
            assert!(align_of::<$name>() <= 8, "the ring buffer aligns to 8 bytes");
        };

        impl $name {
            /// The bytes as they cross between kernel and user space.
            #[must_use]
            pub fn to_bytes(&self) -> [u8; $size] {
                let mut bytes = [0; $size];
                crate::layout::Layout::put(self, &mut bytes);
                bytes
            }
        }

        impl crate::layout::Layout for $name {
            const SIZE: usize = $size;

            fn take(bytes: &mut &[u8]) -> Option<Self> {
                let mut rest = *bytes;
                $( let $field = <$type as crate::layout::Layout>::take(&mut rest)?; )*
                *bytes = rest;
                Some(Self { $($field),* })
            }

            fn put(&self, out: &mut [u8]) {
                $( crate::layout::Layout::put(
                    &self.$field,
                    out.get_mut(core::mem::offset_of!($name, $field)..).unwrap_or_default(),
                ); )*
            }
        }
    };
}

pub(crate) use layout;
