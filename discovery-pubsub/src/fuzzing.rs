//! The parsers, for `interop-tests/fuzz`.

use libp2p_identity::PeerId;

use crate::{Announcement, message::PeerAnnouncement};

/// js-libp2p's announcement: what is read is written and read the same.
pub fn peer(data: &[u8]) {
    let Some((key, _)) = data.split_at_checked(64) else {
        return;
    };
    let author = PeerId::from_bytes(key).unwrap_or_else(|_| PeerId::random());
    let _ = PeerAnnouncement::decode(data, author, 8192);
    if let Some(announcement) = PeerAnnouncement::decode_of_anybody(data) {
        let author = announcement.public_key.to_peer_id();
        let again = PeerAnnouncement::decode(&announcement.encode(), author, usize::MAX);
        assert_eq!(again, Ok(announcement));
    }
    #[cfg(feature = "json")]
    {
        let _ = crate::json::peer(data, author);
        let _ = crate::json::content(data, author);
    }
}

/// An announcement of a service, bare and sealed.
pub fn announcement(data: &[u8]) {
    if let Ok(Some(announcement)) = Announcement::decode(data, 65_536) {
        let again = Announcement::decode(&announcement.encode(), usize::MAX);
        assert_eq!(again, Ok(Some(announcement)));
    }
    let _ = Announcement::open(data, 65_536);
}
