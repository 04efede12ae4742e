//! Firecracker: what is said to it. Facts about its requests are from its published API description.

pub mod api;
