//! Room 5: windowed aggregates.

pub mod settings;

pub use settings::Settings;
