//! `holdfast demo`.
