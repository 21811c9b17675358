//! SCTP on DTLS ([RFC 8261](https://www.rfc-editor.org/rfc/rfc8261)): one association, whose packets come and go here.

use std::{net::SocketAddr, sync::Arc, time::Duration};

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

/// Ports, tag and checksum.
const HEADER: usize = 12;
/// Less room than this may be none.
const ROOM_FOR_ANY: u32 = 1500;
const DATA: u8 = 0;
const INIT: u8 = 1;

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
    /// Ports and tag of the packets with data that come.
    header: Option<[u8; 8]>,
    /// The last chunk up to which we have told that everything has come.
    acknowledged: Option<u32>,
    /// What the peer told last that it has room for.
    room: u32,
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
            header: None,
            acknowledged: None,
            room: u32::MAX,
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
        if packet.get(HEADER) == Some(&DATA) {
            self.header = packet.first_chunk().copied();
        }
        self.take(Bytes::copy_from_slice(packet), now);
        if let Some((_, room)) = sack(packet) {
            let had = std::mem::replace(&mut self.room, room);
            if had < ROOM_FOR_ANY && room >= ROOM_FOR_ANY {
                self.retransmit(now);
            }
        }
    }

    /// What was sent into no room is sent again, now that there is some. `sctp-proto` waits for its timer, which has grown as long as the peer
    /// had none (RFC 9260, section 6.1, rule A, wants such a wait not to count).
    fn retransmit(&mut self, now: Instant) {
        let Some(association) = &mut self.association else {
            return;
        };
        // The next timer, of whatever it is: of data that is on its way, in this state.
        if let Some(due) = association.poll_timeout()
            && due > now
            && due - now <= Duration::from_millis(RTO_MAX)
        {
            association.handle_timeout(due);
        }
    }

    fn take(&mut self, packet: Bytes, now: Instant) {
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
        if packet.get(HEADER) != Some(&INIT) {
            return true;
        }
        let Some(tag) = packet.get(16..20).and_then(|tag| tag.as_array().copied()) else {
            return false;
        };
        !self.is_client && *self.init_tag.get_or_insert(tag) == tag
    }

    /// Has the peer told how much room there is, which had to wait for it. `sctp-proto` tells it when data comes and at no other time, so it
    /// gets the last chunk that it has acknowledged once more, with the mark of those that are to be acknowledged at once ([RFC
    /// 7053](https://www.rfc-editor.org/rfc/rfc7053)): of what it has already, nothing is read.
    pub(super) fn tell_room(&mut self, now: Instant) {
        let (Some(header), Some(acknowledged)) = (self.header, self.acknowledged) else {
            return;
        };
        const FIRST_LAST_AT_ONCE: u8 = 0x0b;
        // A byte of data, and three to fill the word.
        let chunk = [DATA, FIRST_LAST_AT_ONCE, 0, 17];
        let mut packet = Vec::with_capacity(32);
        packet.extend_from_slice(&header);
        packet.extend_from_slice(&[0; 4]);
        packet.extend_from_slice(&chunk);
        packet.extend_from_slice(&acknowledged.to_be_bytes());
        packet.extend_from_slice(&[0; 12]);
        let checksum = crc32c::crc32c(&packet).to_le_bytes();
        packet.splice(8..HEADER, checksum);
        self.take(packet.into(), now);
    }

    /// Notices what a packet of ours tells the peer: the room that there is.
    pub(super) fn on_sent(&mut self, packet: &[u8]) -> Option<u32> {
        let (acknowledged, window) = sack(packet)?;
        self.acknowledged = Some(acknowledged);
        Some(window)
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

/// Up to which chunk everything has come, and the receive window ([RFC 9260](https://www.rfc-editor.org/rfc/rfc9260#section-3.3.4)).
fn sack(packet: &[u8]) -> Option<(u32, u32)> {
    const SACK: u8 = 3;
    let mut chunk = packet.get(HEADER..)?;
    loop {
        let [kind, _, l0, l1] = *chunk.first_chunk()?;
        if kind == SACK {
            let number = |at| Some(u32::from_be_bytes(*chunk.get(at..)?.first_chunk()?));
            return Some((number(4)?, number(8)?));
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
