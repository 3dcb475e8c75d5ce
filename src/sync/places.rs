//! Many who wait for one outcome each, and are told together.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use tokio::sync::Notify;

use super::lock;

/// Where they wait: a numbered place for each. One list, where a channel for each would be an
/// allocation that another thread frees.
#[derive(Debug)]
pub(crate) struct Places<T> {
    list: Mutex<List<T>>,
    /// Woken when everybody has left.
    none: Notify,
}

#[derive(Debug)]
struct List<T> {
    all: Vec<Place<T>>,
    /// How many did not wait for their outcome.
    left: usize,
}

#[derive(Debug)]
enum Place<T> {
    Waiting(Option<Waker>),
    Told(T),
    /// Nobody is there any more.
    Left,
}

impl<T> List<T> {
    fn is_empty(&self) -> bool {
        self.left == self.all.len()
    }
}

impl<T> Places<T> {
    /// With room for so many; there may be more.
    pub(crate) fn with_capacity(places: usize) -> Self {
        Self {
            list: Mutex::new(List {
                all: Vec::with_capacity(places),
                left: 0,
            }),
            none: Notify::new(),
        }
    }

    /// Takes the next place.
    pub(crate) fn enter(self: &Arc<Self>) -> Waiter<T> {
        let mut list = lock(&self.list);
        list.all.push(Place::Waiting(None));
        Waiter {
            places: self.clone(),
            place: list.all.len() - 1,
            done: false,
        }
    }

    /// Whether nobody has left.
    pub(crate) fn are_complete(&self) -> bool {
        lock(&self.list).left == 0
    }

    /// At which places somebody waits who was not told.
    pub(crate) fn taken(&self) -> Vec<bool> {
        let list = lock(&self.list);
        let waits = |place: &Place<T>| matches!(place, Place::Waiting(_));
        list.all.iter().map(waits).collect()
    }

    /// Whether somebody waits there who was not told.
    pub(crate) fn is_taken(&self, place: usize) -> bool {
        matches!(lock(&self.list).all[place], Place::Waiting(_))
    }

    /// Tells those at these places, where they still wait.
    pub(crate) fn tell(&self, outcomes: impl IntoIterator<Item = (usize, T)>) {
        let (mut wakers, mut unheard) = (Vec::new(), Vec::new());
        let mut list = lock(&self.list);
        for (place, outcome) in outcomes {
            match &mut list.all[place] {
                Place::Waiting(waker) => {
                    wakers.extend(waker.take());
                    list.all[place] = Place::Told(outcome);
                }
                _ => unheard.push(outcome),
            }
        }
        drop(list);
        drop(unheard);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Tells all who still wait.
    pub(crate) fn tell_all(&self, mut outcome: impl FnMut() -> T) {
        let places = self.taken().into_iter().enumerate();
        let places = places.filter_map(|(place, taken)| taken.then_some(place));
        self.tell(places.map(|place| (place, outcome())));
    }

    /// Waits until everybody has left without an outcome.
    pub(crate) async fn none(&self) {
        while !lock(&self.list).is_empty() {
            self.none.notified().await;
        }
    }
}

/// The future of what is told at one place. Dropping it leaves the place.
#[derive(Debug)]
pub(crate) struct Waiter<T> {
    places: Arc<Places<T>>,
    place: usize,
    done: bool,
}

impl<T> Waiter<T> {
    pub(crate) fn place(&self) -> usize {
        self.place
    }
}

impl<T> Future for Waiter<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Self {
            places,
            place,
            done,
        } = &mut *self;
        let mut list = lock(&places.list);
        let place = &mut list.all[*place];
        match std::mem::replace(place, Place::Left) {
            Place::Told(outcome) => {
                *done = true;
                Poll::Ready(outcome)
            }
            before => {
                *place = Place::Waiting(Some(cx.waker().clone()));
                drop(list);
                // A waker may be the last that keeps a task, and that another waiter here.
                drop(before);
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Waiter<T> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut list = lock(&self.places.list);
        let left = std::mem::replace(&mut list.all[self.place], Place::Left);
        list.left += 1;
        let none = list.is_empty();
        drop(list);
        drop(left);
        if none {
            self.places.none.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn each_is_told_at_its_place_and_only_once() {
        let places = Arc::new(Places::with_capacity(1));
        let [first, second, third] = [(); 3].map(|()| places.enter());
        assert_eq!(third.place(), 2);
        places.tell([(2, "c"), (0, "a"), (2, "again")]);
        assert_eq!(places.taken(), [false, true, false]);
        places.tell_all(|| "rest");
        assert_eq!((first.await, second.await, third.await), ("a", "rest", "c"));
    }

    #[tokio::test]
    async fn whoever_waits_is_woken() {
        let places = Arc::new(Places::with_capacity(2));
        let waiting = tokio::spawn(places.enter());
        tokio::task::yield_now().await;
        assert!(places.is_taken(0));
        places.tell([(0, 7)]);
        assert_eq!(waiting.await.unwrap(), 7);
        assert!(!places.is_taken(0));
    }

    #[tokio::test]
    async fn places_are_empty_when_all_have_left_without_an_outcome() {
        let places = Arc::new(Places::with_capacity(2));
        let (told, leaves) = (places.enter(), places.enter());
        assert!(places.are_complete());
        drop(leaves);
        assert!(!places.are_complete());
        assert!(places.none().now_or_never().is_none());
        places.tell([(0, ()), (1, ())]);
        drop(told);
        places.none().await;
    }
}
