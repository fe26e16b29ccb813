//! Tests of the user's ssh configuration.

use proptest::prelude::*;

use super::*;

const ID: &str = "/home/config/ssh/id_cluster";

fn with(config: &str, entries: &[HostEntry]) -> String {
    String::from_utf8(with_entries(config.as_bytes(), entries, Path::new(ID))).unwrap()
}

fn section(pattern: &str, rest: &str) -> String {
    format!("Host {pattern}\n{rest}\tStrictHostKeyChecking no\n\tIdentityFile {ID}\n")
}

#[test]
fn mapped_hosts_have_their_address_and_port() {
    let entries = mapped(br#"{"sub1": ["10.0.0.2", "30123"], "main1": ["node.example", 30122]}"#).unwrap();
    let expected = section("main1", "\tHostName node.example\n\tPort 30122\n")
        + "\n"
        + &section("sub1", "\tHostName 10.0.0.2\n\tPort 30123\n");
    assert_eq!(with("", &entries), expected);
}

#[test]
fn roles_become_patterns() {
    let entries = by_role("main:1,sub:2").unwrap();
    assert_eq!(with("", &entries), section("main*", "\tPort 2200\n") + "\n" + &section("sub*", "\tPort 2200\n"));
    assert_eq!(by_role("").unwrap(), []);
}

#[test]
fn what_ssh_would_read_as_more_than_a_name_is_refused() {
    for json in [
        r#"{"a\nProxyCommand x": ["h", 1]}"#,
        r#"{"a b": ["h", 1]}"#,
        r#"{"*": ["h", 1]}"#,
        r#"{"a": ["-oProxyCommand=x", 1]}"#,
        r#"{"a": ["h", 0]}"#,
        r#"{"a": ["h", 65536]}"#,
        r#"{"a": ["h"]}"#,
        r#"["a"]"#,
        "",
    ] {
        assert!(mapped(json.as_bytes()).is_err(), "{json}");
    }
    assert!(mapped(br#"{"a": ["fe80::1%eth0", 22]}"#).is_ok());
}

#[test]
fn error_texts_are_stable() {
    let error = |json: &str| mapped(json.as_bytes()).unwrap_err().to_string();
    assert_eq!(error("x"), "not an object of [address, port] pairs (expected value at line 1 column 1)");
    assert_eq!(error(r#"{"a b": ["h", 1]}"#), "\"a b\" is not a valid host name");
    assert_eq!(error(r#"{"a": ["-h", 1]}"#), "a: invalid address \"-h\"");
    assert_eq!(error(r#"{"a": ["h", true]}"#), "a: invalid port true");
    assert_eq!(error(r#"{"a": ["h", "x"]}"#), "a: invalid port \"x\"");
    assert_eq!(by_role("main:1,s b:2").unwrap_err().to_string(), "\"s b\" is not a valid role");
}

#[test]
fn sections_of_earlier_starts_are_replaced_and_the_users_own_stay() {
    let before = mapped(br#"{"main1": ["10.0.0.1", 1]}"#).unwrap();
    let now = mapped(br#"{"main1": ["10.0.0.9", 9]}"#).unwrap();
    let own = "Host *\n    ServerAliveInterval 5\n\nHost main1\n\tUser me\n";
    let first = with(own, &before);
    assert!(first.starts_with(own), "{first}");
    assert_eq!(with(&first, &now), with(own, &now));
}

#[test]
fn what_the_python_runner_has_piled_up_becomes_one() {
    let once = format!("\n{}", section("main*", "\tPort 2200\n"));
    let own = "Host other\n\tPort 1\n";
    assert_eq!(with(&format!("{once}{once}{own}{once}"), &by_role("main:1").unwrap()), format!("{own}{once}"));
}

#[test]
fn a_section_that_the_user_has_added_to_is_the_users() {
    let edited = section("main*", "\tPort 2200\n") + "\tUser me\n";
    let config = with(&edited, &by_role("main:1").unwrap());
    assert_eq!(config, format!("{edited}\n{}", section("main*", "\tPort 2200\n")));
}

#[test]
fn a_last_line_without_an_end_is_not_joined_with_ours() {
    let config = with("Host a\n\tPort 1", &by_role("main:1").unwrap());
    assert!(config.starts_with("Host a\n\tPort 1\n\nHost main*\n"), "{config}");
}

proptest! {
    #[test]
    fn a_hundred_starts_are_one(
        config in prop::collection::vec("(Host [a-z*]{1,3}|\tPort 2200|\tStrictHostKeyChecking no|\tIdentityFile /[a-z]{1,3}|[ -~]{0,12})", 0..12)
            .prop_map(|lines| lines.join("\n")),
    ) {
        let entries = by_role("main:1,sub:2").unwrap();
        let once = with(&config, &entries);
        let mut again = once.clone();
        for _ in 0..100 {
            again = with(&again, &entries);
        }
        prop_assert_eq!(&again, &once);
        prop_assert!(once.starts_with(&config));
    }
}
