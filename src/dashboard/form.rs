//! The parameters of a query or a form, and links with parameters.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::fault::Fault;
use crate::message::Name;

/// The maximum number of parameters of a query or a form.
const MAX_PARAMETERS: usize = 1_000;
/// The characters that are escaped in a parameter.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The parameters of a query or a form, in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct FormFields(Vec<(String, String)>);

impl FormFields {
    /// Decodes `name=value&…`, as browsers send it.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let decode = |part: &str| {
            let spaced = part.replace('+', " ");
            let decoded = percent_decode_str(&spaced).decode_utf8();
            decoded
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| Fault::bad_request("a parameter is not UTF-8"))
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.take(MAX_PARAMETERS + 1).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok::<_, Fault>((decode(name)?, decode(value)?))
        });
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        if pairs.len() > MAX_PARAMETERS {
            return Err(Fault::bad_request(format!(
                "there are more than {MAX_PARAMETERS} parameters"
            )));
        }
        Ok(Self(pairs))
    }

    pub(super) fn of(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(pairs.into_iter().collect())
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the first value of a parameter. `None` if it is missing or empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self
            .pairs()
            .find_map(|(it, value)| (it == name).then_some(value));
        found.filter(|value| !value.is_empty())
    }

    /// Returns all values of a parameter that are not empty.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let values = self.pairs().filter(move |(it, _)| *it == name);
        values
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty())
    }

    /// Returns the value of a required parameter.
    pub(super) fn need(&self, name: &str) -> Result<&str, Fault> {
        self.get(name)
            .ok_or_else(|| Fault::bad_request(format!("the parameter `{name}` is missing")))
    }

    /// Returns a required parameter as a name.
    pub(super) fn name(&self, parameter: &str) -> Result<Name, Fault> {
        let name = Name::from(self.need(parameter)?);
        match name.fault() {
            None => Ok(name),
            Some(fault) => Err(Fault::bad_request(format!(
                "`{parameter}` cannot be used: {fault}"
            ))),
        }
    }

    /// Returns an optional parameter as a number.
    pub(super) fn number(&self, name: &str) -> Result<Option<usize>, Fault> {
        let number = self.get(name).map(str::parse).transpose();
        number.map_err(|_| Fault::bad_request(format!("the parameter `{name}` is not a number")))
    }
}

/// Escapes text for a query.
pub(super) fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// Makes a query, with its question mark. Empty values are left out.
pub(super) fn query<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut query = String::new();
    for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(name);
        query.push('=');
        query.push_str(&escape(value));
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_text_survive_a_query() {
        for name in ["a/b", "50%", "a b+c", "<b>&=?#\"'", "..", "ä\u{202e}"] {
            let query = query([("stream", name), ("empty", "")]);
            assert!(query.is_ascii(), "{query}");
            let form = FormFields::parse(&query[1..]).unwrap();
            assert_eq!(form.get("stream"), Some(name));
            assert_eq!(form.get("empty"), None);
        }
    }

    #[test]
    fn a_parameter_that_is_not_utf8_and_too_many_parameters_are_refused() {
        assert!(FormFields::parse("a=%ff").is_err());
        assert!(FormFields::parse(&"a=1&".repeat(1_001)).is_err());
        assert!(FormFields::parse("%zz&=&&a").is_ok());
    }
}
