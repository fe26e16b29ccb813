//! Structs with the same bytes on both sides, and no byte between the fields.
//!
//! Without padding a record carries nothing but its fields out of the kernel, and it can be decoded
//! field by field in safe code. Integers are in native order: both sides are the same machine.

/// Something with fixed bytes.
pub trait Layout: Sized {
    /// How many bytes it has.
    const SIZE: usize;

    /// Takes it off the front of `bytes`; `None` when they are too few, and then nothing is taken.
    fn take(bytes: &mut &[u8]) -> Option<Self>;

    /// Writes it to the front of `out`; nothing if it does not fit.
    fn put(&self, out: &mut [u8]);

    /// Decodes a record from the front of `bytes`. More bytes are no error: a later version may append.
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
