//! Where requests may go when Twilio redirects.
//!
//! A redirect may lead to any public host over https, and nowhere else: not to
//! plain HTTP, and not to an address that is not globally routable, in any
//! spelling. Names are checked on the address that is connected to. Where the
//! origin is a simulator, http to literal loopback addresses is allowed as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Why a redirect is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not https.
    #[error("it leads to {0}, not https")]
    Scheme(String),
    /// An address that is not globally routable.
    #[error("it leads to {0}, which is not a public address")]
    Address(IpAddr),
    /// A name of which no address is globally routable.
    #[error("it leads to a name without a public address")]
    Name,
    /// A user name or password in the URL.
    #[error("it has credentials in it")]
    Credentials,
    /// Another port than that of https, by way of a proxy.
    #[error("it leads to port {0} through the proxy")]
    Port(u16),
    /// Too many of them.
    #[error("there were more than {0} of them")]
    TooMany(usize),
    /// No or no usable Location.
    #[error("its Location is not a URL")]
    Location,
}

/// What is allowed beyond the ordinary, and what is not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// The origin is a simulator: http to literal loopback addresses is allowed.
    pub loopback: bool,
    /// A proxy connects: it resolves names, so they are checked as names, and the
    /// port is that of https.
    pub proxied: bool,
}

/// Checks what a URL itself tells. Without a proxy names are left to [`PublicResolver`].
pub fn check(url: &Url, terms: Terms) -> Result<(), Refused> {
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refused::Credentials);
    }
    let address = match url.host() {
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
        Some(Host::Domain(_)) => None,
        None => return Err(Refused::Location),
    };
    if terms.loopback && url.scheme() == "http" && address.is_some_and(|address| address.is_loopback()) {
        return Ok(());
    }
    if url.scheme() != "https" {
        return Err(Refused::Scheme(url.scheme().to_owned()));
    }
    if let Some(port) = url.port().filter(|_| terms.proxied) {
        return Err(Refused::Port(port));
    }
    match (address, url.domain()) {
        (Some(address), _) if !is_public(address) => Err(Refused::Address(address)),
        (None, Some(name)) if terms.proxied && is_local_name(name) => Err(Refused::Name),
        _ => Ok(()),
    }
}

/// Names that mean another machine, or another thing, to whoever resolves them: of one
/// label, or below a domain that is nobody's in the public DNS (RFC 6761, RFC 6762,
/// RFC 8375, and `internal`, which ICANN reserved for private use).
fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let Some((_, last)) = name.rsplit_once('.') else { return true };
    matches!(last, "localhost" | "local" | "internal") || name.ends_with(".home.arpa")
}

/// Whether an address is globally routable, after the IANA special-purpose
/// registries (RFC 6890 and its updates). An IPv6 form that carries an IPv4
/// address is judged by that.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b)) // shared address space, RFC 6598
        || (a == 192 && b == 0 && c == 0) // protocol assignments, RFC 6890
        || (a == 192 && b == 88 && c == 99) // 6to4 relays, RFC 7526
        || (a == 198 && (18..20).contains(&b)); // benchmarks, RFC 2544
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = || {
        let [a, b] = segments[6].to_be_bytes();
        let [c, d] = segments[7].to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match segments {
        // IPv4-mapped, RFC 4291.
        [0, 0, 0, 0, 0, 0xffff, ..] => is_public_v4(embedded()),
        // NAT64's well-known prefix, RFC 6052.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(embedded()),
        // Protocol assignments (Teredo, ORCHID and others), RFC 2928.
        [0x2001, second, ..] if second < 0x200 => false,
        // Documentation, RFC 3849 and RFC 9637.
        [0x2001, 0xdb8, ..] => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        // 6to4, RFC 3056: routed by an IPv4 address that may be anything.
        [0x2002, ..] => false,
        // Global unicast is 2000::/3; all else is special or not assigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Resolves names as the system does, and keeps public addresses only, so
/// that what is checked is what is connected to.
#[derive(Debug, Clone, Copy)]
pub struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let resolved = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = resolved.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(Refused::Name.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(url: &str, loopback: bool) -> Result<(), Refused> {
        check(&Url::parse(url).unwrap(), Terms { loopback, proxied: false })
    }

    #[test]
    fn through_a_proxy_names_and_ports_are_checked_as_they_are_written() {
        let checked = |url: &str| check(&Url::parse(url).unwrap(), Terms { proxied: true, ..Terms::default() });
        for name in ["localhost", "db", "x.localhost", "metadata.google.internal", "printer.local", "LOCALHOST."] {
            assert_eq!(checked(&format!("https://{name}/x")), Err(Refused::Name), "{name}");
        }
        assert_eq!(checked("https://media.twiliocdn.com:5432/x"), Err(Refused::Port(5432)));
        assert_eq!(checked("https://media.twiliocdn.com:443/x"), Ok(()));
        assert_eq!(checked("https://2130706433/x"), Err(Refused::Address("127.0.0.1".parse().unwrap())));
    }

    #[test]
    fn private_addresses_are_refused_in_any_spelling() {
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.0.8",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:a9fe:a9fe]",
            "[64:ff9b::10.0.0.1]",
            "[64:ff9b:1::1]",
            "[fc00::1]",
            "[fe80::1]",
            "[ff02::1]",
            "[2001:db8::1]",
            "[2001::1]",
            "[2002:7f00:1::]",
            "[3fff::1]",
            "[::127.0.0.1]",
        ] {
            let refused = checked(&format!("https://{host}/x"), true);
            assert!(matches!(refused, Err(Refused::Address(_))), "{host}: {refused:?}");
        }
    }

    #[test]
    fn public_addresses_and_names_are_followed() {
        for host in
            ["54.172.60.0", "[2600:1f18::1]", "[::ffff:54.172.60.0]", "[64:ff9b::54.172.60.0]", "media.twiliocdn.com"]
        {
            assert_eq!(checked(&format!("https://{host}/x"), false), Ok(()), "{host}");
        }
    }

    #[test]
    fn only_https_is_followed_but_for_a_simulator() {
        assert_eq!(checked("http://media.twiliocdn.com/x", false), Err(Refused::Scheme("http".into())));
        assert_eq!(checked("http://media.twiliocdn.com/x", true), Err(Refused::Scheme("http".into())));
        assert_eq!(checked("http://127.0.0.1:9/x", false), Err(Refused::Scheme("http".into())));
        assert_eq!(checked("http://127.0.0.1:9/x", true), Ok(()));
        assert_eq!(checked("http://[::1]:9/x", true), Ok(()));
        assert_eq!(checked("http://localhost:9/x", true), Err(Refused::Scheme("http".into())));
        assert_eq!(checked("http://10.0.0.1/x", true), Err(Refused::Scheme("http".into())));
        assert_eq!(checked("http://[::ffff:127.0.0.1]/x", true), Err(Refused::Scheme("http".into())));
        assert_eq!(checked("ftp://media.twiliocdn.com/x", true), Err(Refused::Scheme("ftp".into())));
        assert_eq!(checked("https://user@media.twiliocdn.com/x", true), Err(Refused::Credentials));
    }

    #[tokio::test]
    async fn a_name_with_a_private_address_is_refused_when_it_is_resolved() {
        let resolved = PublicResolver.resolve("localhost".parse().unwrap()).await;
        let error = resolved.err().expect("localhost is not public");
        assert_eq!(error.downcast_ref(), Some(&Refused::Name));
    }
}
