//! The matrix as an SVG, ours beside stock: what the record has of every pair.

use super::Implementation;
use super::cells::{self, KINDS};
use super::record::Record;
use crate::compare::swarm::Transport;
use std::fmt::Write as _;

/// Side of a cell, width of the names at the left, height of what stands above.
const CELL: usize = 34;
const LEFT: usize = 118;
const TOP: usize = 104;
const GAP: usize = 40;

/// Rows dial, columns listen. Each cell: the share of ours above, stock's below.
pub(super) fn draw(record: &Record) -> String {
    let side = KINDS.len() * CELL;
    let (width, height) = (LEFT + 2 * side + GAP + LEFT, TOP + side + 62);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    for (number, transport) in [Transport::Quic, Transport::Tcp].into_iter().enumerate() {
        let left = LEFT + number * (side + GAP + LEFT / 2);
        matrix(&mut svg, record, transport, left);
    }
    let legend = [
        ("#1a7f37", "every run became direct"),
        ("#d4a72c", "some did"),
        ("#cf222e", "none did: the relay stays"),
        ("#eaeef2", "not tried"),
    ];
    let y = TOP + side + 26;
    for (number, (colour, text)) in legend.into_iter().enumerate() {
        let x = LEFT + number * 210;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"14\" height=\"14\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\">{text}</text>",
            x + 20,
            y + 11
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"{}\">Rows dial, columns listen. Above left: anypath-holepunch on both sides, below right: libp2p-dcutr.</text>\n</svg>",
        y + 32
    );
    svg
}

fn matrix(svg: &mut String, record: &Record, transport: Transport, left: usize) {
    let title = transport.name().to_uppercase();
    let _ = writeln!(
        svg,
        "<text x=\"{left}\" y=\"20\" font-size=\"15\" font-weight=\"bold\">{title}</text>"
    );
    for (row, dialer) in KINDS.into_iter().enumerate() {
        let y = TOP + row * CELL;
        let (name, middle) = (cells::short(dialer), y + CELL / 2 + 4);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>",
            left - 8
        );
        let x = left + row * CELL + CELL / 2 + 4;
        let above = TOP - 8;
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{above}\" transform=\"rotate(-60 {x} {above})\">{name}</text>"
        );
        for (column, listener) in KINDS.into_iter().enumerate() {
            let cell = cells::pair_name(transport, dialer, listener);
            let colour = |implementation| colour(record, &cell, implementation);
            let (ours, stock) = (colour(Implementation::Ours), colour(Implementation::Stock));
            let x = left + column * CELL;
            let (right, bottom) = (x + CELL - 1, y + CELL - 1);
            let _ = writeln!(
                svg,
                "<path d=\"M{x} {y}H{right}L{x} {bottom}Z\" fill=\"{ours}\"/>\
                 <path d=\"M{right} {y}V{bottom}H{x}Z\" fill=\"{stock}\"/>"
            );
        }
    }
}

fn colour(record: &Record, cell: &str, implementation: Implementation) -> &'static str {
    let runs = record.runs(cell, implementation);
    let direct = runs.iter().filter(|run| run.direct.is_some()).count();
    match direct {
        _ if runs.is_empty() => "#eaeef2",
        0 => "#cf222e",
        all if all == runs.len() => "#1a7f37",
        _ => "#d4a72c",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::punch::record::Run;
    use std::time::Duration;

    #[test]
    fn each_pair_is_drawn_as_it_went() {
        let mut record = Record::default();
        let direct = Run {
            direct: Some(Duration::from_millis(250)),
            ended: Duration::from_millis(250),
            left: 1,
        };
        let cell = "punch.quic.port.sym";
        record.add(cell, Implementation::Ours, direct);
        record.add(cell, Implementation::Ours, Run::broken());
        record.add(cell, Implementation::Stock, Run::broken());
        assert_eq!(colour(&record, cell, Implementation::Ours), "#d4a72c");
        assert_eq!(colour(&record, cell, Implementation::Stock), "#cf222e");
        assert_eq!(
            colour(&record, "punch.tcp.port.sym", Implementation::Ours),
            "#eaeef2"
        );
        let svg = draw(&record);
        let cells = 2 * KINDS.len() * KINDS.len();
        assert_eq!(svg.matches("<path ").count(), 2 * cells);
        assert_eq!(svg.matches("#d4a72c").count(), 2, "the cell and the legend");
    }
}
