//! placeholder

pub mod images;
