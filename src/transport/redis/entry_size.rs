//! The size of a stream's entries, so that one answer has a bounded number of bytes.

/// The most bytes that an answer should have, unless one entry alone has more. While an answer is
/// received, nothing else comes over its connection, and the leases of its entries are not renewed.
pub(super) const ANSWER: usize = 1 << 20;

/// The size of the largest recent entry. It is halved with each answer that shows smaller ones.
#[derive(Debug, Default)]
pub(super) struct EntrySize(Option<usize>);

impl EntrySize {
    /// Notes the sizes of the entries of an answer, in bytes.
    pub(super) fn note(&mut self, sizes: impl IntoIterator<Item = usize>) {
        if let Some(largest) = sizes.into_iter().max() {
            self.0 = Some(largest.max(self.0.unwrap_or(0) / 2));
        }
    }

    /// The size of one entry: that of a whole answer while none is known.
    pub(super) fn expected(&self) -> usize {
        self.0.unwrap_or(ANSWER).max(1)
    }

    /// The number of entries to ask for: at least one, and one while no size is known.
    pub(super) fn fit(&self, most: usize) -> usize {
        match self.0 {
            None => 1,
            Some(size) => (ANSWER / size.max(1)).clamp(1, most.max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_small_until_the_size_of_entries_is_known_and_after_large_ones() {
        let mut size = EntrySize::default();
        assert_eq!(size.fit(32), 1);
        size.note([]);
        assert_eq!(size.fit(32), 1);
        size.note([10, 20]);
        assert_eq!(size.fit(32), 32);
        size.note([10, 4 << 20]);
        assert_eq!(size.fit(32), 1);
        let counts = [(); 6].map(|()| {
            size.note([10]);
            size.fit(32)
        });
        assert_eq!(counts, [1, 1, 2, 4, 8, 16]);
    }
}
