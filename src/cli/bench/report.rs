//! What was measured: as a table for people, as JSON for programs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::args::BenchArguments;
use super::drive::Measured;

/// Latencies in µs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u32>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        Self {
            count: histogram.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1_000.0,
        }
    }
}

/// One round on one server.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    pub seconds: f64,
    pub operations: u64,
    pub per_second: f64,
    pub latency_us: Latency,
    /// By kind of operation, in the order of the load's kinds.
    pub kinds_latency_us: Vec<Latency>,
    /// Processor time of the generator for each operation, in µs.
    pub generator_us: f64,
    /// Processor time of the server for each operation, in µs.
    pub server_us: Option<f64>,
}

impl From<Measured> for Round {
    fn from(measured: Measured) -> Self {
        let operations = measured.operations.max(1) as f64;
        Self {
            seconds: measured.seconds,
            operations: measured.operations,
            per_second: measured.operations as f64 / measured.seconds.max(1e-9),
            latency_us: Latency::of(&measured.all_latency_ns),
            kinds_latency_us: measured.latency_ns.iter().map(Latency::of).collect(),
            generator_us: measured.generator_cpu * 1e6 / operations,
            server_us: measured.server_cpu.map(|cpu| cpu * 1e6 / operations),
        }
    }
}

impl Round {
    /// Whether it kept up with a schedule of so many operations a second, but for what is always
    /// under way at the end.
    fn has_reached(&self, rate: f64) -> bool {
        (self.operations + 1) as f64 >= 0.99 * rate * self.seconds
    }
}

/// Memory of a server's processes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Memory {
    pub rss_bytes: u64,
    pub peak_bytes: u64,
    /// Bytes for each znode or session that was made.
    pub each: Option<f64>,
}

/// One server and its rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Server {
    pub name: String,
    pub rounds: Vec<Round>,
    pub memory: Option<Memory>,
    /// Whether all rounds kept up with the schedule, if there was one.
    pub rate_reached: Option<bool>,
    /// The median of each figure over the rounds.
    pub median: Option<Median>,
}

/// Each figure is a median of its own.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Median {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// Of all rounds, not a median: the worst is the worst.
    pub max_us: f64,
    pub server_us: Option<f64>,
    pub generator_us: f64,
}

impl Server {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            rounds: Vec::new(),
            memory: None,
            rate_reached: None,
            median: None,
        }
    }

    fn summarise(&mut self, rate: Option<f64>) {
        self.rate_reached =
            rate.map(|rate| self.rounds.iter().all(|round| round.has_reached(rate)));
        let of = |figure: &dyn Fn(&Round) -> Option<f64>| {
            median(self.rounds.iter().filter_map(figure).collect())
        };
        let Some(per_second) = of(&|round| Some(round.per_second)) else {
            return;
        };
        let latency = |figure: &dyn Fn(&Latency) -> f64| {
            of(&|round| Some(figure(&round.latency_us))).unwrap_or_default()
        };
        let maxima = self.rounds.iter().map(|round| round.latency_us.max);
        self.median = Some(Median {
            per_second,
            p50_us: latency(&|latency| latency.p50),
            p99_us: latency(&|latency| latency.p99),
            p999_us: latency(&|latency| latency.p999),
            max_us: maxima.fold(0.0, f64::max),
            server_us: of(&|round| round.server_us),
            generator_us: of(&|round| Some(round.generator_us)).unwrap_or_default(),
        });
    }
}

/// The generator against a bare echo.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceiling {
    pub per_second: f64,
    /// Median latency of the same load, in µs: with one client at depth 1 a bare round trip.
    pub p50_us: f64,
    pub generator_us: f64,
}

/// First server to the other, each figure a median of the ratios of the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ratios {
    pub per_second: f64,
    pub p50: f64,
    pub p99: f64,
    pub server_us: Option<f64>,
}

/// The whole result.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub workload: String,
    /// What the table is of.
    #[serde(skip)]
    heading: String,
    pub settings: BTreeMap<&'static str, f64>,
    pub servers: Vec<Server>,
    pub bare_echo: Option<Ceiling>,
    pub ratios: Option<Ratios>,
}

impl Report {
    pub fn new(
        arguments: &BenchArguments,
        mut servers: Vec<Server>,
        bare_echo: Option<Ceiling>,
    ) -> Self {
        for server in &mut servers {
            server.summarise(arguments.rate);
        }
        let ratios = match &servers[..] {
            [first, other] => Some(ratios(first, other)),
            _ => None,
        };
        let mut settings = BTreeMap::from([
            ("clients", f64::from(arguments.clients)),
            ("depth", f64::from(arguments.depth)),
            ("bytes", f64::from(arguments.size)),
            ("keys", f64::from(arguments.keys)),
            ("seconds", arguments.seconds),
            ("rounds", f64::from(arguments.rounds)),
        ]);
        settings.extend(arguments.rate.map(|rate| ("rate", rate)));
        Self {
            workload: arguments.workload.name(),
            heading: heading(arguments),
            settings,
            servers,
            bare_echo,
            ratios,
        }
    }

    /// Writes the table to `out`, and JSON to the file if one is named; `-` is `out`, instead of
    /// the table.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, json: Option<&Path>, out: &mut dyn Write) -> anyhow::Result<()> {
        let text = || serde_json::to_string_pretty(self).context("the report as JSON");
        match json {
            Some(path) if path == Path::new("-") => writeln!(out, "{}", text()?)?,
            Some(path) => {
                let written = fs::write(path, text()? + "\n");
                written.with_context(|| format!("cannot write {}", path.display()))?;
                self.table(out)?;
            }
            None => self.table(out)?,
        }
        Ok(())
    }

    fn table(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        writeln!(out, "{}", self.heading)?;
        let mut rows = vec![
            [
                "",
                "ops/s",
                "p50 µs",
                "p99 µs",
                "p99.9 µs",
                "max µs",
                "server µs/op",
                "generator µs/op",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        for server in &self.servers {
            let Some(median) = &server.median else {
                continue;
            };
            rows.push(vec![
                server.name.clone(),
                format!("{:.0}", median.per_second),
                format!("{:.1}", median.p50_us),
                format!("{:.1}", median.p99_us),
                format!("{:.1}", median.p999_us),
                format!("{:.1}", median.max_us),
                optional(median.server_us, 2),
                format!("{:.2}", median.generator_us),
            ]);
        }
        if let Some(ratios) = &self.ratios {
            rows.push(vec![
                "first / other".to_owned(),
                format!("{:.2}", ratios.per_second),
                format!("{:.3}", ratios.p50),
                format!("{:.3}", ratios.p99),
                String::new(),
                String::new(),
                optional(ratios.server_us, 3),
            ]);
        }
        if let Some(echo) = &self.bare_echo {
            let mut row = vec![
                "bare echo".to_owned(),
                format!("{:.0}", echo.per_second),
                format!("{:.1}", echo.p50_us),
            ];
            row.resize(7, String::new());
            row.push(format!("{:.2}", echo.generator_us));
            rows.push(row);
        }
        write_columns(&rows, out)?;
        for server in &self.servers {
            if server.rate_reached == Some(false) {
                writeln!(
                    out,
                    "{}: the rate was not reached; the latencies are those of a queue that grew",
                    server.name
                )?;
            }
            if let Some(memory) = &server.memory {
                let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                write!(
                    out,
                    "{}: resident {:.1} MiB, peak {:.1} MiB",
                    server.name,
                    mebibytes(memory.rss_bytes),
                    mebibytes(memory.peak_bytes)
                )?;
                match memory.each {
                    Some(each) => writeln!(out, ", {each:.0} bytes each")?,
                    None => writeln!(out)?,
                }
            }
        }
        Ok(())
    }
}

/// The load in words, with the settings that it has.
fn heading(arguments: &BenchArguments) -> String {
    let workload = arguments.workload;
    let mut text = format!("{}: {} clients", workload.name(), arguments.clients);
    if workload.has_depth() {
        text += &format!(", depth {}", arguments.depth);
    }
    if workload.has_data() {
        text += &format!(", {} bytes", arguments.size);
    }
    if workload.has_keys() {
        text += &format!(", {} keys", arguments.keys);
    }
    if let Some(rate) = arguments.rate {
        text += &format!(", {rate} operations/s on schedule");
    }
    if !workload.is_counted() {
        text += &format!(
            "; medians of {} × {} s",
            arguments.rounds, arguments.seconds
        );
    }
    text
}

fn ratios(first: &Server, other: &Server) -> Ratios {
    let of = |figure: &dyn Fn(&Round) -> Option<f64>| {
        let pairs = first.rounds.iter().zip(&other.rounds);
        let ratio = |(a, b): (&Round, &Round)| Some(figure(a)? / figure(b)?);
        median(
            pairs
                .filter_map(ratio)
                .filter(|ratio| ratio.is_finite())
                .collect(),
        )
    };
    Ratios {
        per_second: of(&|round| Some(round.per_second)).unwrap_or_default(),
        p50: of(&|round| Some(round.latency_us.p50)).unwrap_or_default(),
        p99: of(&|round| Some(round.latency_us.p99)).unwrap_or_default(),
        server_us: of(&|round| round.server_us),
    }
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() {
        0 => None,
        count if count % 2 == 1 => Some(figures[middle]),
        _ => Some((figures[middle - 1] + figures[middle]) / 2.0),
    }
}

fn optional(figure: Option<f64>, digits: usize) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.digits$}"))
}

/// The first column to the left, numbers to the right.
fn write_columns(rows: &[Vec<String>], out: &mut dyn Write) -> anyhow::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            if column == 0 {
                line += &format!("  {cell:<width$}");
            } else {
                line += &format!("  {cell:>width$}");
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    fn report(arguments: &str, operations: u64) -> Report {
        let arguments = BenchArguments::parsed(arguments).unwrap();
        let mut server = Server::new("here");
        server.rounds.push(Round::from(Measured {
            seconds: 5.0,
            operations,
            latency_ns: Vec::new(),
            all_latency_ns: Histogram::new(3).unwrap(),
            generator_cpu: 0.0,
            server_cpu: None,
        }));
        let echo = Ceiling {
            per_second: 1e6,
            p50_us: 7.5,
            generator_us: 1.0,
        };
        Report::new(&arguments, vec![server], Some(echo))
    }

    #[test]
    fn the_heading_has_what_the_load_has() {
        let heading = |arguments| report(arguments, 1).heading;
        assert_eq!(
            heading("get --rate 100"),
            "get: 8 clients, depth 16, 128 bytes, 1000 keys, 100 operations/s on schedule; \
             medians of 3 × 5 s"
        );
        assert_eq!(
            heading("create"),
            "create: 8 clients, depth 16, 128 bytes; medians of 3 × 5 s"
        );
        assert_eq!(
            heading("fan-out"),
            "fan-out: 8 clients, 128 bytes; medians of 3 × 5 s"
        );
        for load in ["flink", "session"] {
            let expected = format!("{load}: 8 clients; medians of 3 × 5 s");
            assert_eq!(heading(load), expected);
        }
        assert_eq!(
            heading("fill"),
            "fill: 8 clients, depth 16, 128 bytes, 1000 keys"
        );
        assert_eq!(heading("idle"), "idle: 8 clients");
    }

    #[test]
    fn a_rate_that_was_not_reached_is_told() {
        for (operations, reached) in [(500, true), (494, true), (493, false)] {
            let report = report("get --rate 100", operations);
            assert_eq!(report.servers[0].rate_reached, Some(reached));
            let mut table = Vec::new();
            report.write(None, &mut table).unwrap();
            let table = String::from_utf8(table).unwrap();
            assert_eq!(table.contains("here: the rate was not reached"), !reached);
            let mut json = Vec::new();
            report.write(Some(Path::new("-")), &mut json).unwrap();
            let json = String::from_utf8(json).unwrap();
            assert!(
                json.contains(&format!("\"rate_reached\": {reached}")),
                "{json}"
            );
            assert!(json.contains("\"p50_us\": 7.5"), "{json}");
            assert!(!json.contains("heading"), "{json}");
        }
        assert_eq!(report("get", 1).servers[0].rate_reached, None);
    }

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec![String::new(), "ops/s".to_owned()],
            vec!["a".to_owned(), "7".to_owned()],
        ];
        let mut out = Vec::new();
        write_columns(&rows, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "     ops/s\n  a      7\n");
    }
}
