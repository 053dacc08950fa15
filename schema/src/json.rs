//! Schemas as JSON: what a person reads, and a reader in another language.

use serde::{Deserialize, Serialize};

use crate::bytes::{MAX_BYTES, SchemaError};
use crate::model::{Schema, TypeDef};

/// What the format of all archived types here is called.
const FORMAT: &str = "rkyv-0.8 little-endian aligned pointer-32";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    name: String,
    format: String,
    /// Left out where it is not known; checked where it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<String>,
    types: Vec<TypeDef>,
}

impl Schema {
    /// Returns the schema as JSON, indented.
    ///
    /// The types are a list, and a type refers to another by its place in it; the message is the first.
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus_schema::{Description, Schema, Shape};
    ///
    /// let schema = Schema::flatten("text", || Description::of::<[u32; 2]>(Shape::String));
    /// assert!(schema.to_json().contains(r#""kind": "string""#));
    /// assert_eq!(Schema::from_json(&schema.to_json())?, schema);
    /// # Ok::<(), shmbus_schema::SchemaError>(())
    /// ```
    pub fn to_json(&self) -> String {
        let document = Document {
            name: self.name.clone(),
            format: FORMAT.into(),
            fingerprint: Some(format!("{:032x}", self.fingerprint())),
            types: self.types.clone(),
        };
        serde_json::to_string_pretty(&document).expect("maps here have text as keys")
    }

    /// Reads what [`to_json`](Self::to_json) wrote, from anyone.
    ///
    /// # Errors
    ///
    /// It is not JSON of this form, not consistent, too large, or of another fingerprint than it says.
    pub fn from_json(json: &str) -> Result<Self, SchemaError> {
        if json.len() > 8 * MAX_BYTES {
            let (found, limit) = (json.len(), 8 * MAX_BYTES);
            return Err(SchemaError::TooLarge {
                what: "bytes of JSON",
                found,
                limit,
            });
        }
        let document: Document =
            serde_json::from_str(json).map_err(|error| SchemaError::Json(error.to_string()))?;
        if document.format != FORMAT {
            let text = format!("its format is `{}`, this reads `{FORMAT}`", document.format);
            return Err(SchemaError::Json(text));
        }
        let schema = Self::checked(document.name, document.types)?;
        match document.fingerprint {
            Some(said) if said != format!("{:032x}", schema.fingerprint()) => Err(
                SchemaError::Json("its fingerprint is not that of its types".into()),
            ),
            _ => Ok(schema),
        }
    }
}
