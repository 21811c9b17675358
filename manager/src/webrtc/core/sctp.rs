//! SCTP on DTLS ([RFC 8261](https://www.rfc-editor.org/rfc/rfc8261)): one association, whose packets come and go here.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use sctp_proto::{
    Association, AssociationHandle, ClientConfig, DatagramEvent, Endpoint, EndpointConfig, Event,
    Payload, ServerConfig, TransportConfig,
};
use web_time::Instant;

/// What may arrive before it is read, on all channels; the peer is told what is left of it.
pub(super) const RECEIVE_BUFFER: u32 = 1024 * 1024;

/// The largest SCTP message that is taken: a frame, and the length of the next one. A larger one ends the association.
const MAX_MESSAGE: u32 = 64 * 1024;

/// What DTLS 1.2 with AES-GCM, and SCTP's two headers, add to data, in a datagram that passes where IPv6 does (1280 bytes). `sctp-proto`
/// forgets a header and paddings where it puts several chunks into one packet, so that many of one byte make up to 1440.
const MAX_PAYLOAD: u32 = 1280 - 40 - 8 - (13 + 8 + 16) - (12 + 16) - 16 - 3;

const _: () = assert!(super::message::MAX_SENT_BYTES == 3 * MAX_PAYLOAD as usize);

/// libwebrtc's, in milliseconds. The standard's are those of the telephone network: 3, 1 and 60 s.
const RTO_INITIAL: u64 = 500;
const RTO_MIN: u64 = 400;
const RTO_MAX: u64 = 10_000;

/// The association has no address: it lives in one DTLS connection.
const NOWHERE: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    sctp_proto::DEFAULT_SCTP_PORT,
);

pub(super) struct Sctp {
    endpoint: Endpoint,
    handle: Option<AssociationHandle>,
    pub(super) association: Option<Association>,
    /// Of the INIT that made the association: others make none.
    init_tag: Option<[u8; 4]>,
    is_client: bool,
}

impl Sctp {
    pub(super) fn new(is_client: bool) -> Self {
        let mut server = ServerConfig::default();
        server.transport = transport();
        let mut endpoint = EndpointConfig::default();
        endpoint.max_payload_size(MAX_PAYLOAD);
        Self {
            endpoint: Endpoint::new(Arc::new(endpoint), Some(Arc::new(server))),
            handle: None,
            association: None,
            init_tag: None,
            is_client,
        }
    }

    /// The client begins.
    pub(super) fn connect(&mut self) {
        let mut client = ClientConfig::default();
        client.transport = transport();
        // It fails for a wrong configuration alone.
        if let Ok((handle, association)) = self.endpoint.connect(client, NOWHERE) {
            self.handle = Some(handle);
            self.association = Some(association);
        }
    }

    pub(super) fn handle_packet(&mut self, packet: &[u8], now: Instant) {
        if !self.takes(packet) {
            return;
        }
        let packet = Bytes::copy_from_slice(packet);
        match self.endpoint.handle(now, NOWHERE, None, None, packet) {
            Some((handle, DatagramEvent::NewAssociation(association)))
                if self.association.is_none() =>
            {
                self.handle = Some(handle);
                self.association = Some(association);
            }
            Some((_, DatagramEvent::AssociationEvent(event))) => {
                if let Some(association) = &mut self.association {
                    association.handle_event(event);
                }
            }
            Some((_, DatagramEvent::NewAssociation(_))) | None => {}
        }
    }

    /// Both ends of WebRTC may begin; the endpoint would make an association of each INIT.
    fn takes(&mut self, packet: &[u8]) -> bool {
        const HEADER: usize = 12;
        const INIT: u8 = 1;
        if packet.get(HEADER) != Some(&INIT) {
            return true;
        }
        let Some(tag) = packet.get(16..20).and_then(|tag| tag.as_array().copied()) else {
            return false;
        };
        !self.is_client && *self.init_tag.get_or_insert(tag) == tag
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.association.as_ref()?.poll_timeout()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let Some(association) = &mut self.association else {
            return;
        };
        if association.poll_timeout().is_some_and(|due| due <= now) {
            association.handle_timeout(now);
        }
    }

    pub(super) fn poll(&mut self) -> Option<Event> {
        let association = self.association.as_mut()?;
        while let Some(event) = association.poll_endpoint_event() {
            if let Some(handle) = self.handle
                && let Some(event) = self.endpoint.handle_event(handle, event)
            {
                association.handle_event(event);
            }
        }
        association.poll()
    }

    /// Packets for DTLS, as many as the peer and the path take.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<Bytes>> {
        let transmit = self
            .endpoint
            .poll_transmit()
            .or_else(|| self.association.as_mut()?.poll_transmit(now))?;
        match transmit.payload {
            Payload::RawEncode(packets) => Some(packets),
            Payload::PartialDecode(_) => Some(Vec::new()),
        }
    }
}

/// The receive window that a packet of ours tells the peer ([RFC 9260](https://www.rfc-editor.org/rfc/rfc9260#section-3.3.4)).
pub(super) fn window(packet: &[u8]) -> Option<u32> {
    const SACK: u8 = 3;
    let mut chunk = packet.get(12..)?;
    loop {
        let [kind, _, l0, l1] = *chunk.first_chunk()?;
        if kind == SACK {
            return Some(u32::from_be_bytes(*chunk.get(8..)?.first_chunk()?));
        }
        let length = usize::from(u16::from_be_bytes([l0, l1])).next_multiple_of(4);
        chunk = chunk.get(length.max(4)..)?;
    }
}

impl std::fmt::Debug for Sctp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sctp").finish_non_exhaustive()
    }
}

fn transport() -> Arc<TransportConfig> {
    // That the peer is gone is for ICE to find out.
    let transport = TransportConfig::default()
        .with_max_receive_buffer_size(RECEIVE_BUFFER)
        .with_max_receive_message_size(MAX_MESSAGE)
        .with_max_send_message_size(super::message::MAX_SENT_BYTES as u32)
        .with_max_init_retransmits(None)
        .with_max_data_retransmits(None)
        .with_rto_initial_ms(RTO_INITIAL)
        .with_rto_min_ms(RTO_MIN)
        .with_rto_max_ms(RTO_MAX);
    Arc::new(transport)
}
