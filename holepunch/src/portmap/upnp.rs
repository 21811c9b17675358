//! UPnP over real sockets: a search by multicast, and HTTP.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    time::Duration,
};

use async_io::Async;
use futures::{
    AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _,
    future::{Either, select},
};
use futures_timer::Delay;

use crate::core::portmap::{
    Route,
    upnp::{Answer, Call, SEARCH, Url, location, service},
};

/// Where gateways listen for searches.
const MULTICAST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// A search is repeated until it is answered; UDP may lose it.
const SEARCH_AGAIN: Duration = Duration::from_millis(700);
/// A description has some kilobytes; more is not read.
const MAX_BODY: usize = 128 * 1024;
const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 64;

/// Makes the call. Whoever waits bounds the time.
pub(super) async fn perform(call: &Call, route: Route) -> io::Result<Answer> {
    let Some(post) = call.post() else {
        return search(route).await;
    };
    let (path, address, body) = (&post.url.path, post.url.address, &post.body);
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n\
         SOAPAction: \"{}\"\r\nContent-Length: {}\r\n\r\n{body}",
        post.action,
        body.len()
    );
    let (status, body) = exchange(address, &request).await?;
    Ok(call.answer(status, &body))
}

/// Finds the gateway's service. Answers of others are not looked at.
async fn search(route: Route) -> io::Result<Answer> {
    let socket = Async::<UdpSocket>::bind((route.local, 0))?;
    let mut buffer = [0; 2048];
    loop {
        for target in [
            MULTICAST,
            SocketAddrV4::new(route.gateway, MULTICAST.port()),
        ] {
            if let Err(error) = socket.send_to(SEARCH.as_bytes(), target).await {
                tracing::debug!(%error, %target, "cannot search for UPnP");
            }
        }
        let mut again = Delay::new(SEARCH_AGAIN);
        loop {
            let received = socket.recv_from(&mut buffer).boxed();
            let (length, from) = match select(received, &mut again).await {
                Either::Left((Ok(received), _)) => received,
                Either::Left((Err(error), again)) => {
                    tracing::debug!(%error, "cannot hear of UPnP");
                    again.await;
                    break;
                }
                Either::Right(_) => break,
            };
            if from.ip() != route.gateway {
                tracing::debug!(%from, "somebody else answers for the gateway");
                continue;
            }
            let reply = buffer.get(..length).unwrap_or_default();
            let Some(url) = location(reply, route.gateway) else {
                continue;
            };
            match describe(&url).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "the description cannot be read"),
            }
        }
    }
}

async fn describe(url: &Url) -> io::Result<Option<Answer>> {
    let Url { address, path } = url;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let (status, body) = exchange(*address, &request).await?;
    Ok(match status {
        200 => service(&body, url).map(Answer::Found),
        _ => None,
    })
}

/// One HTTP request and its answer.
async fn exchange(address: SocketAddrV4, request: &str) -> io::Result<(u16, String)> {
    let mut stream = Async::<TcpStream>::connect(SocketAddr::V4(address)).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(answer) = read(&bytes, false)? {
            return Ok(answer);
        }
        let length = stream.read(&mut chunk).await?;
        bytes.extend(chunk.get(..length).unwrap_or_default());
        if length == 0 {
            return read(&bytes, true)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
        }
        if bytes.len() > MAX_HEAD + MAX_BODY {
            return Err(io::Error::other("the answer is too long"));
        }
    }
}

/// The answer, once it is complete. `ended`: nothing more comes.
fn read(bytes: &[u8], ended: bool) -> io::Result<Option<(u16, String)>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let head = response.parse(bytes).map_err(io::Error::other)?;
    let httparse::Status::Complete(head) = head else {
        return match bytes.len() > MAX_HEAD {
            true => Err(io::Error::other("the head of the answer is too long")),
            false => Ok(None),
        };
    };
    let header = |name: &str| {
        let mut headers = response.headers.iter();
        let found = headers.find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let body = bytes.get(head..).unwrap_or_default();
    let chunked = header("transfer-encoding")
        .is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"));
    let length = header("content-length").and_then(|length| length.trim().parse::<usize>().ok());
    let body = match (chunked, length) {
        (true, _) => unchunked(body)?,
        (false, Some(length)) => body.get(..length).map(<[u8]>::to_vec),
        (false, None) => ended.then(|| body.to_vec()),
    };
    let status = response.code.unwrap_or_default();
    Ok(body.map(|body| (status, String::from_utf8_lossy(&body).into_owned())))
}

/// The content of a chunked body (RFC 9112 §7.1), once it is complete.
fn unchunked(mut body: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    loop {
        let size = httparse::parse_chunk_size(body)
            .map_err(|_| io::Error::other("a chunk has no size"))?;
        let httparse::Status::Complete((start, size)) = size else {
            return Ok(None);
        };
        if size == 0 {
            return Ok(Some(content));
        }
        let chunk = usize::try_from(size).ok().and_then(|size| {
            let rest = body.get(start..)?;
            Some((rest.get(..size)?, rest.get(size.checked_add(2)?..)?))
        });
        let Some((chunk, rest)) = chunk else {
            return Ok(None);
        };
        content.extend(chunk);
        body = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_head_says() {
        let read = |text: &str, ended| read(text.as_bytes(), ended).unwrap();
        let some = |status, body: &str| Some((status, body.to_owned()));
        let counted = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert_eq!(read(counted, false), some(200, "abc"));
        assert_eq!(read(&counted[..counted.len() - 1], true), None);
        assert_eq!(read("HTTP/1.1 200 OK\r\nConte", false), None);
        let chunked =
            "HTTP/1.1 500 Oh\r\ntransfer-encoding: Chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n";
        assert_eq!(read(chunked, false), some(500, "abc"));
        for cut in 1..chunked.len() - 2 {
            let part = read(&chunked[..cut], false);
            assert!(part.is_none() || part == some(500, "abc"), "at {cut}");
        }
        let until_end = "HTTP/1.0 200 OK\r\n\r\nabc";
        assert_eq!(read(until_end, false), None);
        assert_eq!(read(until_end, true), some(200, "abc"));
    }

    #[test]
    fn what_is_no_answer_is_an_error_and_what_is_too_long_as_well() {
        assert!(read(b"SSH-2.0-OpenSSH\r\n\r\n", false).is_err());
        let mut head = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        head.resize(MAX_HEAD + 1, b'x');
        assert!(read(&head, false).is_err());
        let bad = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        assert!(read(bad, false).is_err());
        let huge =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n";
        assert_eq!(read(huge, false).unwrap(), None);
    }
}
