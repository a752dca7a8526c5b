//! Under which names we may be asked.
//!
//! A web page of a stranger can make his own name resolve to our address (DNS rebinding) and then read our answers as if they were
//! his. What gives him away is the `Host` header, which his name is in. An address cannot be rebound, so addresses that
//! are ours pass, as do `localhost` and, where the operator chose to be reachable from outside, the machine's own name.

use std::net::{IpAddr, SocketAddr};

/// The names that pass.
#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    listen: IpAddr,
    machine: Option<String>,
}

impl Hosts {
    /// The names under which a listener at `listen` on `machine` may be asked.
    pub(crate) fn new(listen: SocketAddr, machine: &str) -> Self {
        let is_machine_reachable = !listen.ip().is_loopback() && !machine.is_empty();
        Self { listen: listen.ip(), machine: is_machine_reachable.then(|| machine.to_ascii_lowercase()) }
    }

    /// Whether `header`, the value of `Host` (with or without a port), is a name of ours. The port is not looked at: a forwarded
    /// one (ssh, containers) is as good.
    pub(crate) fn allow(&self, header: &str) -> bool {
        let Some(name) = without_port(header) else { return false };
        match name.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || ip == self.listen || self.listen.is_unspecified(),
            Err(_) => self.allow_name(&name.to_ascii_lowercase()),
        }
    }

    fn allow_name(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_machine =
            |machine: &String| name == machine || name.strip_suffix(".local") == Some(machine.as_str());
        name == "localhost" || name.ends_with(".localhost") || self.machine.as_ref().is_some_and(is_machine)
    }
}

/// `[::1]:80`, `[::1]`, `host:80` and `host` without port and brackets; `None` if it is none of them.
fn without_port(header: &str) -> Option<&str> {
    if let Some(rest) = header.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        return (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(address);
    }
    match header.split_once(':') {
        Some((name, port)) => is_port(port).then_some(name),
        None => Some(header),
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_cannot_be_rebound_pass() {
        let check = |listen: &str, host: &str, expected: bool| {
            let hosts = Hosts::new(listen.parse().unwrap(), "Gw-Lab-01");
            assert_eq!(hosts.allow(host), expected, "{host} at {listen}");
        };
        let (loopback, any, lan) = ("127.0.0.1:9550", "0.0.0.0:9550", "192.168.1.7:9550");
        for ours in [
            "127.0.0.1:9550",
            "127.0.0.1",
            "localhost:9550",
            "LOCALHOST",
            "[::1]:9550",
            "[::1]",
            "localhost:8080",
        ] {
            check(loopback, ours, true);
            check(any, ours, true);
        }
        for theirs in
            ["evil.example", "evil.example:9550", "localhost.evil.example", "", "127.0.0.1.evil.example"]
        {
            check(loopback, theirs, false);
            check(any, theirs, false);
        }
        for broken in ["[::1", "[::1]x", "localhost:80:80", "::1", "localhost:evil"] {
            check(any, broken, false);
        }
        check(loopback, "gw-lab-01", false);
        check(loopback, "192.168.1.7", false);
        check(lan, "192.168.1.7:9550", true);
        check(lan, "192.168.1.8", false);
        check(any, "192.168.1.8", true);
        for name in ["gw-lab-01:9550", "GW-lab-01.local", "gw-lab-01."] {
            check(any, name, true);
        }
        check(any, "gw-lab-01.evil.example", false);
    }
}
