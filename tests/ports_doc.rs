//! docs/ports.md against the code: every option, status key, counter and command is in its tables, and nothing else is.

#[path = "common/document.rs"]
mod document;
#[path = "common/quoted.rs"]
mod quoted;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use document::{root, rows};
use ovs_vhost::port::{Environment, Host, Mode, Port, Settings, Switches};
use quoted::quoted;

/// Commands that only a build for tests has.
const FOR_TESTS: [&str; 1] = ["vhost-user/inject-panic"];

/// Open vSwitch's own commands that know ports of every type.
const OF_EVERY_PORT: [&str; 1] = ["qos/show"];

type Words = BTreeSet<String>;

fn text(file: impl AsRef<Path>) -> String {
    let file = root().join(file);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The files of a folder, one after the other.
fn texts(folder: &str) -> String {
    let files = fs::read_dir(root().join(folder)).expect("a folder").flatten();
    files
        .map(|file| file.path())
        .filter(|path| path.is_file())
        .map(text)
        .collect()
}

/// What stands between double quotes behind `call`, wherever that is called; the string may be the argument of a format.
fn literals(code: &str, call: &str) -> Words {
    let arguments = code.split(call).skip(1).map(str::trim_start);
    let strings = arguments.filter_map(|rest| {
        let rest = rest.strip_prefix("&format!(").unwrap_or(rest);
        rest.strip_prefix('"')?.split('"').next()
    });
    strings.map(str::to_owned).collect()
}

/// The same for several calls.
fn all(code: &str, calls: &[&str]) -> Words {
    calls.iter().flat_map(|call| literals(code, call)).collect()
}

/// What is between backquotes in the first cells of the rows that `which` chooses, or in another cell.
fn documented(heading: &str, cell: usize, which: impl Fn(&[String]) -> bool) -> Words {
    let rows = rows("docs/ports.md", heading);
    let cells: Vec<String> = rows
        .iter()
        .filter(|row| which(row))
        .map(|row| row[cell].clone())
        .collect();
    cells
        .iter()
        .flat_map(|cell| quoted(cell))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_table_of_options_has_every_option_and_no_other() {
    let code = texts("src/port");
    let of_interfaces = all(&code, &["row(", "value(given, "]);
    let table = documented("Options", 1, |row| row[0].contains("`options`"));
    assert_eq!(table, of_interfaces, "Interface options");
    let mut of_the_switch = all(&code, &["..row(", "value(settings.other_config, "]);
    let from_maps = ["smap_get_bool(other_config, ", "smap_get(other_config, "];
    of_the_switch.append(&mut all(&texts("c-shim"), &from_maps));
    let table = documented("Options", 1, |row| row[0].contains("`other_config`"));
    assert_eq!(table, of_the_switch, "other_config");
}

#[test]
fn the_table_of_the_status_has_every_key_and_no_other() {
    let code = texts("src/port");
    let (_, status) = code
        .split_once("pub fn status(")
        .expect("where the status is made");
    let status = status.split("\n    }\n").next().unwrap_or_default();
    // What is between braces is a number.
    let numbered = |key: String| match (key.find('{'), key.find('}')) {
        (Some(from), Some(to)) => format!("{}N{}", &key[..from], &key[to + 1..]),
        _ => key,
    };
    let keys: Words = literals(status, "emit(").into_iter().map(numbered).collect();
    assert!(keys.contains("vring_N_size"), "{keys:?}");
    assert_eq!(documented("Status", 0, |_| true), keys);
}

/// A counter's name with `<N>` for the number of its queue.
fn of_any_queue(name: &str) -> String {
    let Some((direction, rest)) = name.split_once("_q") else {
        return name.to_owned();
    };
    let what = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    match what.len() < rest.len() {
        true => format!("{direction}_q<N>{what}"),
        false => name.to_owned(),
    }
}

/// A netdev that nothing is told to.
struct Netdev;

impl Host for Netdev {
    fn changed(&self) {}
    fn request_reconfigure(&self) {}
    fn unlink_at_exit(&self, _: &Path) {}
    fn keep_at_exit(&self, _: &Path) {}
}

/// The counters of a port. The standard ones have the names of the structure that carries them.
fn counters() -> Words {
    let settings = Settings {
        rundir: &std::env::temp_dir(),
        sock_dirs: &[],
        other_config: &[],
        switches: Switches::default(),
        memory_locked: false,
    };
    let environment = Environment::new(&settings, || ()).expect("a control thread");
    let port = Port::new("counted", Mode::Client, &environment, Box::new(Netdev)).expect("a port");
    let mut names = Words::new();
    port.custom_stats(&mut |name, _| {
        names.insert(of_any_queue(name));
    });
    let standard = format!("{:?}", port.stats());
    let fields = standard
        .split([' ', '{'])
        .filter_map(|word| word.strip_suffix(':'));
    names.extend(fields.map(|field| match field {
        "multicast" => "rx_multicast_packets".to_owned(),
        field => field.to_owned(),
    }));
    port.close();
    names
}

#[test]
fn the_table_of_counters_has_every_counter_and_no_other() {
    let table = documented("Counters", 0, |_| true);
    let speaks_of = |entry: &str, name: &str| match entry.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == entry,
    };
    let counters = counters();
    assert!(
        counters.contains("rx_q<N>_good_packets") && counters.contains("tx_bytes"),
        "{counters:?}"
    );
    for name in &counters {
        assert!(
            table.iter().any(|entry| speaks_of(entry, name)),
            "docs/ports.md lacks {name}"
        );
        // Those that have neither a stock prefix nor ours would be taken for others.
        let ours = name.starts_with("ovs_vhost_");
        assert!(
            !ours || table.contains(name),
            "docs/ports.md does not say what {name} counts"
        );
    }
    for entry in &table {
        assert!(
            counters.iter().any(|name| speaks_of(entry, name)),
            "there is no counter {entry}"
        );
    }
}

#[test]
fn the_tables_of_commands_have_every_command_and_no_other() {
    let first_word = |command: String| command.split(' ').next().unwrap_or_default().to_owned();
    let table: Words = documented("Looking inside", 0, |_| true)
        .into_iter()
        .map(first_word)
        .collect();
    let ours = literals(&texts("c-shim"), "unixctl_command_register(");
    assert!(ours.len() > FOR_TESTS.len(), "{ours:?}");
    for command in ours
        .iter()
        .filter(|command| !FOR_TESTS.contains(&command.as_str()))
    {
        assert!(table.contains(command), "docs/ports.md lacks {command}");
    }
    // What is not ours is Open vSwitch's, and some of that a patch of ours has know these ports.
    let patches = texts("ovs-patches/3.1");
    for command in table.difference(&ours) {
        let is_known =
            OF_EVERY_PORT.contains(&command.as_str()) || patches.contains(&format!("ovs-appctl {command}"));
        assert!(is_known, "there is no command {command}");
    }
}

#[test]
fn the_table_of_captures_has_every_option_and_no_other() {
    let mut options = literals(&texts("src/tap"), "Number(");
    options.extend(["direction", "queue"].map(str::to_owned));
    assert_eq!(documented("Captures", 0, |_| true), options);
}
