//! Four-letter words, to a server with something to tell.

use std::net::{Ipv4Addr, SocketAddr};

use zkraft::admin::Word;
use zkraft::config::Loaded;
use zkraft::net::{Clock, Words};
use zkraft::server::{Network, ServerView};

use super::input::Input;
use super::server::Server;

const NAMES: &[&[u8; 4]] = &[
    b"conf", b"cons", b"crst", b"dirs", b"dump", b"envi", b"gtmk", b"hash", b"isro", b"mntr",
    b"ruok", b"srst", b"srvr", b"stat", b"stmk", b"wchc", b"wchp", b"wchs",
];

/// Input: a word by its place, or 255 and any four bytes; then what comes behind it.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let word = match input.byte() {
        255 => input.int().to_be_bytes(),
        place => *NAMES[usize::from(place) % NAMES.len()],
    };
    let view = view();
    let answer = view.answer(word, input.0);
    assert_eq!(answer.is_some(), Word::from_bytes(word).is_some());
    let Some(answer) = answer else { return };
    let text = String::from_utf8(answer).expect("text");
    assert!(!text.contains('\0'));
    if word == *b"stmk"
        && let Some(mask) = input.0.first_chunk()
    {
        let kept = view.answer(*b"gtmk", b"").expect("a known word");
        assert_eq!(kept, i64::from_be_bytes(*mask).to_string().into_bytes());
    }
}

fn view() -> ServerView {
    let server = Server::new(0x0f);
    let loaded = Loaded::text(
        "zoo.cfg",
        b"clientPort=2181\n4lw.commands.whitelist=*\n",
        &[],
        true,
    );
    let config = loaded.expect("the settings are valid").config;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 2181));
    ServerView::new(
        &config,
        address,
        server.shared.clone(),
        Network::default(),
        Clock::start(),
    )
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mask = b"\0\0\0\0\0\0\x01\x32";
    let all = (0..NAMES.len()).map(|place| [&[place as u8][..], mask].concat());
    let others: [&[u8]; 3] = [b"\xff\xff\xf4\xff\xfd", b"\xff\0\0\0\x2d", b"\xffruokruok"];
    all.chain(others.map(<[u8]>::to_vec)).collect()
}
