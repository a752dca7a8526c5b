//! A plant of devices that speak Modbus: tokio-modbus as the server, over TCP, or over RTU on a pty.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::{Ready, ready};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use holdfast::source::pty::Pty;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
pub use tokio_modbus::ExceptionCode;
use tokio_modbus::server::{Service, rtu_over_tcp, tcp};
use tokio_modbus::{Request, Response, SlaveRequest};

/// What a device does when it is asked.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// It has these registers, in both spaces; other addresses it refuses. Coil n is on if n is odd.
    Has(BTreeMap<u16, u16>),
    /// It does not answer.
    #[default]
    Silent,
    /// It refuses everything.
    Refuses(ExceptionCode),
}

/// The devices, by unit. Cheap to clone; all clones are the same plant.
#[derive(Clone, Debug, Default)]
pub struct Plant(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    devices: BTreeMap<u8, Device>,
    asked: BTreeMap<u8, u64>,
}

impl Plant {
    /// Puts a device at this unit, in place of another. Where there is none, nobody answers.
    pub fn put(&self, unit: u8, device: Device) {
        self.shared().devices.insert(unit, device);
    }

    /// A device whose registers from 0 on hold these.
    pub fn put_registers(&self, unit: u8, registers: &[u16]) {
        self.put(unit, Device::Has((0..).zip(registers.iter().copied()).collect()));
    }

    /// How often a unit was asked.
    #[must_use]
    pub fn asked(&self, unit: u8) -> u64 {
        self.shared().asked.get(&unit).copied().unwrap_or_default()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap()
    }

    fn answer(&self, unit: u8, request: &Request<'_>) -> Result<Option<Response>, ExceptionCode> {
        let mut shared = self.shared();
        *shared.asked.entry(unit).or_default() += 1;
        let registers = match shared.devices.get(&unit) {
            None | Some(Device::Silent) => return Ok(None),
            Some(Device::Refuses(exception)) => return Err(*exception),
            Some(Device::Has(registers)) => registers,
        };
        let read = |first: u16, count: u16| -> Result<Vec<u16>, ExceptionCode> {
            let of = |address| registers.get(&address).copied().ok_or(ExceptionCode::IllegalDataAddress);
            (first..first + count).map(of).collect()
        };
        let bits = |first: u16, count: u16| (first..first + count).map(|address| address % 2 == 1).collect();
        Ok(Some(match *request {
            Request::ReadInputRegisters(first, count) => Response::ReadInputRegisters(read(first, count)?),
            Request::ReadHoldingRegisters(first, count) => {
                Response::ReadHoldingRegisters(read(first, count)?)
            }
            Request::ReadCoils(first, count) => Response::ReadCoils(bits(first, count)),
            Request::ReadDiscreteInputs(first, count) => Response::ReadDiscreteInputs(bits(first, count)),
            _ => return Err(ExceptionCode::IllegalFunction),
        }))
    }
}

impl Service for Plant {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Option<Response>, ExceptionCode>>;

    fn call(&self, asked: Self::Request) -> Self::Future {
        ready(self.answer(asked.slave, &asked.request))
    }
}

/// A Modbus server, up until it is stopped or dropped.
#[derive(Debug)]
pub struct Server(JoinHandle<()>);

impl Server {
    /// The plant over TCP, at this port.
    ///
    /// # Panics
    /// If the port is taken.
    pub async fn tcp(plant: &Plant, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let plant = plant.clone();
        Self(tokio::spawn(async move {
            let connected = |stream, address| {
                let plant = plant.clone();
                async move { tcp::accept_tcp_connection(stream, address, move |_| Ok(Some(plant.clone()))) }
            };
            // Broken connections are part of the tests.
            tcp::Server::new(listener).serve(&connected, drop).await.unwrap();
        }))
    }

    /// Stops it; its connections are cut.
    pub async fn stop(mut self) {
        self.0.abort();
        // Cancelled, as it should be.
        drop((&mut self.0).await);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The plant at the other end of a serial port, until it is unplugged or dropped.
#[derive(Debug)]
pub struct Port {
    /// Has the other end of the port.
    server: Server,
    link: PathBuf,
    /// While nobody has a port open, its other end fails.
    near: File,
}

impl Port {
    /// A new port, to which the link at `link` leads.
    ///
    /// # Panics
    /// If the system has no pty.
    #[must_use]
    pub fn plug_in(plant: &Plant, link: &Path) -> Self {
        let pty = Pty::new().unwrap();
        let near = pty.hold().unwrap();
        std::os::unix::fs::symlink(pty.path(), link).unwrap();
        Self { server: Server(tokio::spawn(serve_rtu(plant.clone(), pty))), link: link.to_owned(), near }
    }

    /// Pulls it out. The link goes first: the system gives the number of the port to whoever asks next.
    ///
    /// # Panics
    /// If the link is gone already.
    pub async fn unplug(self) {
        let Self { server, link, near } = self;
        std::fs::remove_file(link).unwrap();
        server.stop().await;
        drop(near);
    }
}

/// Serves RTU on the other end of a pty. The library's own server on ports opens them so that child processes keep them
/// open; so this is its server for RTU over TCP, with the pty in the place of a connection.
async fn serve_rtu(plant: Plant, pty: Pty) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let master = Mutex::new(Some(pty.into_stream().unwrap()));
    let connected = |_connection, _address| {
        let master = master.lock().unwrap().take();
        let served = master.map(|master| (plant.clone(), master));
        ready(Ok(served))
    };
    let server = rtu_over_tcp::Server::new(listener);
    let serving = server.serve(&connected, drop);
    let (served, _connection) = tokio::join!(serving, TcpStream::connect(address));
    served.unwrap();
}
