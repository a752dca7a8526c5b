//! The agent in this world: configured, started, killed, stopped.

use std::fmt::Write;
use std::time::Duration;

use harness::simulated_disk::Disk;
use holdfast::clock::Clock;
use holdfast::config::{self, Config};
use holdfast::pipeline::{self, Outside, Running};
use holdfast::status;
use holdfast::store::Medium;
use holdfast::store::settings::WhenFull;

use crate::cloud::Wire;
use crate::peers;
use crate::plan::Limit;
use crate::world::World;

/// What may be configured otherwise from start to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Configured {
    pub(crate) second_sink: bool,
    pub(crate) extra_window: bool,
}

/// Starts the agent on `disk`.
pub(crate) async fn start(
    world: &World,
    disk: &Disk,
    configured: Configured,
) -> Result<Running, pipeline::Error> {
    let (to_sink, to_source) = (world.clone(), world.clone());
    let disk = disk.clone();
    let outside = Outside {
        clock: Clock::simulated(world.wall),
        machine: Some(String::new()),
        medium: Some(Medium::Backend(Box::new(move |builder| {
            disk.drop_cache();
            builder.create_with_backend(disk.clone())
        }))),
        transport: Some(Box::new(move |settings| Box::new(Wire::new(to_sink.clone(), settings)))),
        source: Some(Box::new(move |settings, rooms| peers::source(to_source.clone(), settings, rooms))),
    };
    pipeline::start_in(config(world, configured), outside).await
}

fn config(world: &World, configured: Configured) -> Config {
    let plan = world.with(|state| state.plan.clone());
    let mut text = "[agent]\nid = \"gw\"\ndata_dir = \"/tmp\"\n".to_owned();
    let subscribe = |source: &str| {
        format!(
            "[[sources.{source}.subscribe]]\ntopic = \"timed/{{device}}\"\ntime = \"/ts\"\n\
             [[sources.{source}.subscribe]]\ntopic = \"untimed/{{device}}\"\n"
        )
    };
    let _infallible = write!(
        text,
        "[sources.plant]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:1883\"\n{}\
         [sources.direct]\ntype = \"mqtt-listen\"\nlisten = \"127.0.0.1:0\"\n{}",
        subscribe("plant"),
        subscribe("direct"),
    );
    let mut window = |name: &str, slide: Duration| {
        let _infallible = write!(
            text,
            "[windows.{name}]\nsize = \"10s\"\nslide = \"{}ms\"\nlateness = \"2s\"\nallowed_lateness = \"{}ms\"\nidle = \"3s\"\n\
             fields = [\"v\"]\naggregates = [\"count\", \"sum\", \"min\", \"max\", \"first\", \"last\", \"stddev\", \"p50\"]\n",
            slide.as_millis(),
            plan.allowed_lateness.as_millis(),
        );
    };
    window("w", plan.slide);
    if configured.extra_window {
        window("extra", Duration::from_secs(10));
    }
    let mut sink = |name: &str, more: &str| {
        let _infallible = write!(
            text,
            "[sinks.{name}]\ntype = \"http\"\nurl = \"http://127.0.0.1:9/\"\nstreams = [\"windows\", \"readings\"]\n\
             compression = \"{}\"\nrequire_ack = {}\nbatch = {{ records = {}, wait = \"1s\" }}\n\
             retry = {{ initial = \"500ms\", max = \"20s\" }}\ntimeout = \"10s\"\n{more}",
            plan.compression, plan.require_ack, plan.batch_records,
        );
    };
    sink("cloud", "");
    if configured.second_sink {
        sink("second", "required = false\n");
    }
    let loaded = config::parse(&text, "sim.toml", &config::System);
    let mut config = loaded.expect("what is configured here is right").config;
    config.admin = status::Settings { listen: None, socket: None };
    config.store.commit_interval = plan.commit_interval;
    match plan.limit {
        Limit::None => {}
        Limit::Shed(bytes) => config.store.max_size_bytes = bytes,
        Limit::Block(bytes) => {
            config.store.max_size_bytes = bytes;
            config.store.when_full = WhenFull::Block;
        }
        Limit::Age(age) => config.store.max_age = age,
    }
    config
}
