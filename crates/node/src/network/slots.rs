//! The numbers of places: which are in use, and which wait ready-made.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::{Place, Reserved};
use crate::Error;

/// More than any host runs VMs. With `vm` before it, a number fits an interface's name.
const MAX_PLACES: u32 = 100_000;

/// The books of places.
#[derive(Debug)]
pub(super) struct Slots {
    ahead: usize,
    books: Mutex<Books>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Books {
    /// Every number that means something: in use, waiting or being made.
    numbers: BTreeSet<u32>,
    ready: VecDeque<Place>,
    /// How many are being made to wait.
    making: usize,
    closed: bool,
}

impl Slots {
    pub fn new(ahead: usize) -> Self {
        Self { ahead, books: Mutex::default(), changed: Notify::new() }
    }

    /// One that waits, or a number for a new one.
    pub fn take(&self) -> Result<Reserved, Error> {
        let mut books = self.lock();
        let reserved = match books.ready.pop_front() {
            Some(place) => Reserved::Made(place),
            None => Reserved::Named(books.new_number()?),
        };
        drop(books);
        self.changed.notify_one();
        Ok(reserved)
    }

    /// The number of a place that should be made to wait; `None` when enough do.
    pub fn to_make(&self) -> Result<Option<u32>, Error> {
        let mut books = self.lock();
        if books.closed || books.ready.len() + books.making >= self.ahead {
            return Ok(None);
        }
        let number = books.new_number()?;
        books.making += 1;
        Ok(Some(number))
    }

    /// One that was made to wait.
    pub fn put(&self, place: Place) {
        let mut books = self.lock();
        books.making = books.making.saturating_sub(1);
        books.ready.push_back(place);
    }

    /// One that was taken and is not needed after all.
    pub fn put_back(&self, reserved: Reserved) {
        let mut books = self.lock();
        match reserved {
            Reserved::Made(place) => books.ready.push_front(place),
            Reserved::Named(number) => {
                books.numbers.remove(&number);
            }
        }
    }

    /// One that could not be made to wait, and of which nothing is there. Nobody is woken: the next
    /// would not come about either.
    pub fn not_made(&self, number: u32) {
        self.left();
        self.lock().numbers.remove(&number);
    }

    /// One that could not be made to wait, and of which something may be there: its number means it
    /// until the next server sweeps it away.
    pub fn left(&self) {
        let mut books = self.lock();
        books.making = books.making.saturating_sub(1);
    }

    /// A number that was in use before we were.
    pub fn adopt(&self, number: u32) {
        self.lock().numbers.insert(number);
    }

    /// A number means nothing any more.
    pub fn give_back(&self, number: u32) {
        self.lock().numbers.remove(&number);
        self.changed.notify_one();
    }

    /// Everything that waits; nothing is made any more.
    pub fn drain(&self) -> Vec<Place> {
        let mut books = self.lock();
        books.closed = true;
        books.ready.drain(..).collect()
    }

    pub fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    pub fn numbers(&self) -> BTreeSet<u32> {
        self.lock().numbers.clone()
    }

    /// Completes when one was taken or given back since it was asked last.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    fn new_number(&mut self) -> Result<u32, Error> {
        let number = (0..MAX_PLACES)
            .find(|number| !self.numbers.contains(number))
            .ok_or_else(|| Error::NoCapacity("every network place is in use".to_owned()))?;
        self.numbers.insert(number);
        Ok(number)
    }
}
