//! What was measured, round by round, and what is made of it.

use std::collections::BTreeMap;

/// Samples by name: one number a round.
#[derive(Default)]
pub struct Samples(BTreeMap<String, Vec<f64>>);

impl Samples {
    pub fn add(&mut self, name: impl Into<String>, value: f64) {
        self.0.entry(name.into()).or_default().push(value);
    }

    /// The median over the rounds.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).map(|rounds| median(rounds))
    }

    /// What was found of this with that: in each round the one divided by the other, and of these
    /// the median. Both were measured one after the other in that round, so what the machine did to
    /// a round it did to both.
    pub fn ratio(&self, ours: &str, theirs: &str) -> Option<Ratio> {
        let (ours, theirs) = (self.0.get(ours)?, self.0.get(theirs)?);
        let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |part: f64| ratios[((ratios.len() - 1) as f64 * part).round() as usize];
        Some(Ratio { low: at(0.25), median: median(&ratios), high: at(0.75) })
    }
}

/// The median of the rounds' ratios, and where the middle half of them lies.
#[derive(Clone, Copy)]
pub struct Ratio {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// The value that this part of all is at most.
pub fn percentile(sorted: &[u32], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part).ceil() as usize;
    f64::from(sorted[at.clamp(1, sorted.len()) - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_ratios_percentiles() {
        let mut samples = Samples::default();
        for (ours, theirs) in [(1.0, 2.0), (3.0, 4.0), (10.0, 100.0)] {
            samples.add("a", ours);
            samples.add("b", theirs);
        }
        assert_eq!(samples.get("a"), Some(3.0));
        assert_eq!(samples.get("c"), None);
        let ratio = samples.ratio("a", "b").unwrap();
        assert_eq!((ratio.low, ratio.median, ratio.high), (0.5, 0.5, 0.75));
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        let sorted: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&sorted, 0.5), 50.0);
        assert_eq!(percentile(&sorted, 0.99), 99.0);
        assert_eq!(percentile(&sorted, 0.999), 100.0);
    }
}
