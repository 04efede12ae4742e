//! Values that several users share, made by the first of them and given up by the last.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError, Weak},
};

/// Counts the users of each value: all who hold its `Arc`.
#[derive(Debug)]
pub struct Shared<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V> Shared<K, V> {
    /// The one that is there, or a new one. Whoever else wants the same waits meanwhile, so that there are never two.
    pub fn get<E>(&self, key: K, make: impl FnOnce() -> Result<V, E>) -> Result<Arc<V>, E> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values.get(&key).and_then(Weak::upgrade) {
            return Ok(value);
        }
        values.retain(|_, value| value.strong_count() > 0);
        let value = Arc::new(make()?);
        values.insert(key, Arc::downgrade(&value));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn the_first_makes_it_and_the_last_gives_it_up() {
        let shared = Shared::default();
        let made = std::cell::Cell::new(0);
        let get = |key: &'static str| {
            let make = || {
                made.set(made.get() + 1);
                Ok::<_, Infallible>(made.get())
            };
            shared.get(key, make).unwrap()
        };
        let (one, same, other) = (get("a"), get("a"), get("b"));
        assert_eq!((*one, *same, *other), (1, 1, 2));
        drop(one);
        assert_eq!(*get("a"), 1, "one user is left");
        drop(same);
        assert_eq!(*get("a"), 3, "nobody was left");
        assert_eq!(*get("b"), 2);
    }

    #[test]
    fn one_that_cannot_be_made_is_tried_again() {
        let shared = Shared::default();
        assert_eq!(shared.get(1, || Err::<(), _>("no")), Err("no"));
        assert!(shared.get(1, || Ok::<_, Infallible>(())).is_ok());
    }
}
