//! An input of the fuzzer, taken apart piece by piece. Where it ends, zeros follow, so that every
//! input means something.

/// What is left of an input.
#[derive(Clone, Copy)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn int(&mut self) -> i32 {
        i32::from_be_bytes(self.array())
    }

    /// Bytes that are preceded by their number: one byte, or 255 and then two.
    pub fn run(&mut self) -> &'a [u8] {
        let length = match self.byte() {
            255 => usize::from(u16::from_be_bytes(self.array())),
            short => usize::from(short),
        };
        self.take(length)
    }

    /// As many bytes as there are, up to `length`.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}

/// Bytes as [`Input::run`] reads them.
pub fn run_of(bytes: &[u8]) -> Vec<u8> {
    let mut run = match u8::try_from(bytes.len()) {
        Ok(short) if short < 255 => vec![short],
        _ => {
            let length = u16::try_from(bytes.len()).expect("runs are below 64 KiB");
            let mut run = vec![255];
            run.extend(length.to_be_bytes());
            run
        }
    };
    run.extend(bytes);
    run
}
