//! Status page, metrics, health and the API: reads what rooms publish, asks nobody.

pub mod settings;

pub use settings::Settings;
