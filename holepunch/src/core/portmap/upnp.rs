//! The texts of a UPnP Internet Gateway Device: discovery (SSDP), description, and calls (SOAP) of its
//! WANIPConnection or WANPPPConnection service.
//!
//! Whatever is read here was written by something in the local network: every address must be the
//! gateway's, every text is bounded by the adapter, and nothing but fixed names gets into a request.

use std::net::{Ipv4Addr, SocketAddrV4};

use quick_xml::{Reader, events::Event};

use super::PortKey;
use crate::core::nat::Proto;

/// The services that map ports, those that are likelier to be connected first.
const KINDS: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// A path longer than this is nobody's.
const MAX_PATH: usize = 512;
/// Error codes of WANIPConnection (§2.4).
const NO_SUCH_ENTRY: u16 = 714;
const CONFLICT: u16 = 718;
const ONLY_PERMANENT: u16 = 725;

/// Something on the gateway that HTTP gets or posts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// Always the gateway's.
    pub(crate) address: SocketAddrV4,
    /// Printable ASCII without blanks, begins with a slash.
    pub(crate) path: String,
}

impl Url {
    /// An absolute `http` URL of the gateway, or a path on the host of `base`.
    fn parse(text: &str, gateway: Ipv4Addr, base: Option<SocketAddrV4>) -> Option<Self> {
        let text = text.trim();
        let (address, path) = match (text.strip_prefix("http://"), base) {
            (Some(rest), _) => {
                let slash = rest.find('/').unwrap_or(rest.len());
                let (host, path) = rest.split_at_checked(slash)?;
                let (ip, port) = host.split_once(':').unwrap_or((host, "80"));
                (
                    SocketAddrV4::new(ip.parse().ok()?, port.parse().ok()?),
                    path,
                )
            }
            (None, Some(base)) => (base, text),
            (None, None) => return None,
        };
        let path = match path.strip_prefix('/') {
            Some(_) => path.to_owned(),
            None => format!("/{path}"),
        };
        let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic());
        (*address.ip() == gateway && address.port() != 0 && is_plain && path.len() <= MAX_PATH)
            .then_some(Self { address, path })
    }
}

/// Where the gateway takes calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) url: Url,
    kind: &'static str,
}

/// What is asked of the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    /// Look for the service.
    Search,
    /// The address on the far side.
    ExternalAddress(Service),
    /// Map the public port `external`; 0 seconds: until it is deleted.
    Add {
        service: Service,
        port: PortKey,
        external: u16,
        local: Ipv4Addr,
        seconds: u32,
    },
    /// Who has the public port `external`.
    Entry {
        service: Service,
        port: PortKey,
        external: u16,
    },
    /// Give the public port `external` back.
    Delete {
        service: Service,
        port: PortKey,
        external: u16,
    },
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Of [`Call::Search`].
    Found(Service),
    /// Of [`Call::ExternalAddress`].
    ExternalAddress(Ipv4Addr),
    /// Of [`Call::Entry`]: the host and port that have it.
    Entry(Ipv4Addr, u16),
    /// Of [`Call::Add`] and [`Call::Delete`].
    Done,
    /// The gateway said no.
    Refused(Refusal),
    /// It did not answer.
    Failed,
}

/// Why the gateway said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Nobody has the port.
    NoSuchEntry,
    /// Somebody else has it.
    Conflict,
    /// Only mappings without an end are made.
    OnlyPermanent,
    /// Anything else, by its code or HTTP's; also what cannot be read.
    Other(u16),
}

/// The search for gateways (UPnP Device Architecture 1.1, §1.3.2), by multicast and to the gateway itself.
pub(crate) const SEARCH: &str = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n";

/// Where the description is that an answer to the search names, if it is the gateway's.
pub(crate) fn location(reply: &[u8], gateway: Ipv4Addr) -> Option<Url> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    response.parse(reply).ok()?;
    if response.code != Some(200) {
        return None;
    }
    let mut headers = response.headers.iter();
    let location = headers.find(|header| header.name.eq_ignore_ascii_case("location"))?;
    Url::parse(std::str::from_utf8(location.value).ok()?, gateway, None)
}

/// The service that maps ports, out of the description that was at `url`.
pub(crate) fn service(description: &str, url: &Url) -> Option<Service> {
    let gateway = *url.address.ip();
    let mut base = url.address;
    let (mut kind, mut control) = (None, None);
    let mut best: Option<(usize, Service)> = None;
    elements(description, |name, text| match name {
        "URLBase" => {
            base = Url::parse(text, gateway, None).map_or(base, |url| url.address);
        }
        "serviceType" => kind = KINDS.iter().position(|known| *known == text.trim()),
        "controlURL" => control = Some(text.to_owned()),
        "service" => {
            let found = kind.take().zip(control.take()).and_then(|(rank, control)| {
                let url = Url::parse(&control, gateway, Some(base))?;
                let kind = KINDS.get(rank)?;
                Some((rank, Service { url, kind }))
            });
            if let Some((rank, service)) = found
                && best.as_ref().is_none_or(|(other, _)| rank < *other)
            {
                best = Some((rank, service));
            }
        }
        _ => {}
    });
    best.map(|(_, service)| service)
}

/// A POST that makes the call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Post {
    pub(crate) url: Url,
    /// The header `SOAPAction`, without quotes.
    pub(crate) action: String,
    pub(crate) body: String,
}

impl Call {
    /// The request to send; `None` of a search.
    pub(crate) fn post(&self) -> Option<Post> {
        let (service, name, arguments) = match self {
            Self::Search => return None,
            Self::ExternalAddress(service) => (service, "GetExternalIPAddress", String::new()),
            Self::Add {
                service,
                port,
                external,
                local,
                seconds,
            } => (
                service,
                "AddPortMapping",
                format!(
                    "{}<NewInternalPort>{}</NewInternalPort><NewInternalClient>{local}</NewInternalClient>\
                     <NewEnabled>1</NewEnabled><NewPortMappingDescription>anypath</NewPortMappingDescription>\
                     <NewLeaseDuration>{seconds}</NewLeaseDuration>",
                    entry(*port, *external),
                    port.number
                ),
            ),
            Self::Entry {
                service,
                port,
                external,
            } => (
                service,
                "GetSpecificPortMappingEntry",
                entry(*port, *external),
            ),
            Self::Delete {
                service,
                port,
                external,
            } => (service, "DeletePortMapping", entry(*port, *external)),
        };
        let kind = service.kind;
        Some(Post {
            url: service.url.clone(),
            action: format!("{kind}#{name}"),
            body: format!(
                "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
                 s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
                 <u:{name} xmlns:u=\"{kind}\">{arguments}</u:{name}></s:Body></s:Envelope>\r\n"
            ),
        })
    }

    /// Reads what the gateway answered to [`post`](Self::post): the HTTP status and the body.
    pub(crate) fn answer(&self, status: u16, body: &str) -> Answer {
        let (mut address, mut client, mut port, mut error) = (None, None, None, None);
        elements(body, |name, text| {
            let text = text.trim();
            match name {
                "NewExternalIPAddress" => address = text.parse().ok(),
                "NewInternalClient" => client = text.parse().ok(),
                "NewInternalPort" => port = text.parse().ok(),
                "errorCode" => error = text.parse().ok(),
                _ => {}
            }
        });
        if status != 200 {
            return Answer::Refused(match error.unwrap_or(status) {
                NO_SUCH_ENTRY => Refusal::NoSuchEntry,
                CONFLICT => Refusal::Conflict,
                ONLY_PERMANENT => Refusal::OnlyPermanent,
                code => Refusal::Other(code),
            });
        }
        let unreadable = Answer::Refused(Refusal::Other(status));
        match self {
            Self::ExternalAddress(_) => address.map_or(unreadable, Answer::ExternalAddress),
            Self::Entry { .. } => client
                .zip(port)
                .map_or(unreadable, |(client, port)| Answer::Entry(client, port)),
            Self::Add { .. } | Self::Delete { .. } => Answer::Done,
            Self::Search => unreadable,
        }
    }
}

/// The arguments that name a mapping.
fn entry(port: PortKey, external: u16) -> String {
    let protocol = match port.proto {
        Proto::Udp => "UDP",
        Proto::Tcp => "TCP",
    };
    format!(
        "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort><NewProtocol>{protocol}</NewProtocol>"
    )
}

/// Calls `each` at the end of every element, with its local name and the text directly before that.
/// Stops where the document is broken: what came before counts.
fn elements(document: &str, mut each: impl FnMut(&str, &str)) {
    let mut reader = Reader::from_str(document);
    let mut text = String::new();
    loop {
        match reader.read_event() {
            Ok(Event::Start(_)) => text.clear(),
            Ok(Event::Text(part)) => text.push_str(&String::from_utf8_lossy(&part)),
            Ok(Event::CData(part)) => text.push_str(&String::from_utf8_lossy(&part)),
            Ok(Event::GeneralRef(entity)) if &*entity == b"amp" => text.push('&'),
            Ok(Event::End(end)) => {
                each(&String::from_utf8_lossy(end.local_name().as_ref()), &text);
                text.clear();
            }
            Ok(Event::Eof) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
