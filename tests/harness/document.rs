//! A document that describes answers or messages by JSON Schema: its references, and validators of the schemas in it.

use jsonschema::{ValidationError, Validator};
use serde_json::{Value, json};

/// The document.
pub struct Document {
    name: &'static str,
    json: Value,
    dialect: Dialect,
}

/// Makes a validator by the rules of one version of JSON Schema.
type Dialect = fn(&Value) -> Result<Validator, ValidationError<'static>>;

impl Document {
    /// Reads one. `name`: its file's, for messages; `text`: YAML.
    ///
    /// # Panics
    /// When it is not YAML.
    pub fn read(name: &'static str, text: &str, dialect: Dialect) -> Document {
        let json = serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        Document {
            name,
            json,
            dialect,
        }
    }

    /// It as JSON.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// What a `$ref` into the document stands for.
    ///
    /// # Panics
    /// When there is no such thing in it.
    pub fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value.get("$ref").and_then(Value::as_str) else {
            return value;
        };
        let found = reference
            .strip_prefix('#')
            .and_then(|pointer| self.json.pointer(pointer));
        self.resolved(found.unwrap_or_else(|| panic!("{} has no {reference}", self.name)))
    }

    /// A validator of a schema that refers to the document's components.
    ///
    /// # Panics
    /// When it is no schema.
    pub fn validator(&self, schema: &Value) -> Validator {
        let whole = json!({"allOf": [schema], "components": self.json["components"]});
        (self.dialect)(&whole).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

/// What is wrong with a value, each with its place in it.
pub fn faults(validator: &Validator, value: &Value) -> Vec<String> {
    validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}
