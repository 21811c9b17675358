//! Who may ask: checked before any route sees the request.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{Api, routes::Failure};

/// Refuses foreign hosts, and changes without the token.
pub(super) async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    if !is_local(request.headers()) {
        let text = "this API answers to localhost only (Host header)";
        return Failure::new(StatusCode::FORBIDDEN, text).into_response();
    }
    let only_reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !only_reads && !has_token(request.headers(), &api.token) {
        let text = "this needs the token from api.json: Authorization: Bearer <token>";
        return Failure::new(StatusCode::UNAUTHORIZED, text).into_response();
    }
    next.run(request).await
}

/// Whether the client believes that it talks to this machine. A web page whose name was pointed at 127.0.0.1 (DNS
/// rebinding) sends that name.
fn is_local(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return false;
    };
    let Ok(host) = host.to_str() else {
        return false;
    };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "[::1]"
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let given = given
        .and_then(|value| value.strip_prefix("Bearer "))
        .unwrap_or_default();
    // As long for a wrong token as for a right one.
    let differing = given
        .bytes()
        .zip(token.bytes())
        .fold(0, |differing, (a, b)| differing | (a ^ b));
    given.len() == token.len() && !token.is_empty() && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (name.clone(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn only_names_of_this_machine_are_local() {
        for host in [
            "localhost",
            "LOCALHOST:9000",
            "127.0.0.1",
            "127.0.0.1:1",
            "[::1]:9000",
            "[::1]",
        ] {
            assert!(is_local(&headers(header::HOST, &[host])), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "::1",
        ] {
            assert!(!is_local(&headers(header::HOST, &[host])), "{host}");
        }
        assert!(!is_local(&HeaderMap::new()));
        assert!(!is_local(&headers(
            header::HOST,
            &["localhost", "evil.example"]
        )));
    }

    #[test]
    fn only_the_whole_token_is_accepted() {
        let accepts = |value: &str| has_token(&headers(header::AUTHORIZATION, &[value]), "secret");
        assert!(accepts("Bearer secret"));
        for value in [
            "",
            "secret",
            "Bearer",
            "Bearer ",
            "Bearer secre",
            "Bearer secret1",
            "Basic secret",
        ] {
            assert!(!accepts(value), "{value}");
        }
        assert!(!has_token(&HeaderMap::new(), "secret"));
        assert!(!has_token(
            &headers(header::AUTHORIZATION, &["Bearer "]),
            ""
        ));
    }
}
