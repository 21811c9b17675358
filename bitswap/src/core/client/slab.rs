//! Values by number, in pages: growing copies nothing and allocates little in advance.

/// Values of a page.
const PAGE: usize = 256;

#[derive(Debug)]
pub(super) struct Slab<T> {
    pages: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Slab<T> {
    pub(super) const fn new() -> Self {
        Self {
            pages: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Keeps a value; its number may have belonged to another that was removed.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(number) = self.free.pop()
            && let Some(slot) = self.slot(number)
        {
            *slot = Some(value);
            return number;
        }
        if self.pages.last().is_none_or(|page| page.len() == PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        let page = self.pages.len().saturating_sub(1);
        let mut number = page * PAGE;
        if let Some(page) = self.pages.last_mut() {
            number += page.len();
            page.push(Some(value));
        }
        // 2^32 values take more memory than there is.
        u32::try_from(number).unwrap_or(u32::MAX)
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        let page = self.pages.get(number as usize / PAGE)?;
        page.get(number as usize % PAGE)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.slot(number)?.as_mut()
    }

    fn slot(&mut self, number: u32) -> Option<&mut Option<T>> {
        let page = self.pages.get_mut(number as usize / PAGE)?;
        page.get_mut(number as usize % PAGE)
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        let value = self.slot(number)?.take()?;
        self.len -= 1;
        if self.len == 0 {
            self.pages = Vec::new();
            self.free = Vec::new();
        } else {
            self.free.push(number);
        }
        Some(value)
    }

    /// All numbers are below this.
    pub(super) fn bound(&self) -> u32 {
        u32::try_from(self.pages.len() * PAGE).unwrap_or(u32::MAX)
    }

    /// Bytes allocated.
    pub(super) fn allocated(&self) -> usize {
        self.pages.len() * PAGE * size_of::<Option<T>>()
            + self.pages.capacity() * size_of::<Vec<Option<T>>>()
            + self.free.capacity() * size_of::<u32>()
    }
}
