//! Markers: empty objects that say of a recording what the bucket alone must know.

use object_store::{Attribute, Attributes, ObjectStore, PutOptions, PutPayload};

use super::{Bucket, Result, path};
use crate::domain::object_key::{self, Marker};
use crate::domain::recording::{Details, Recording};

impl Bucket {
    /// Writes a recording's marker; one that is there is written again. It names the
    /// call only once Twilio did: whoever reads it takes that for its word. It says, too,
    /// whether the recording's copy at Twilio is still to go.
    pub async fn put_marker(&self, marker: Marker, recording: &Recording, owes_twilio: bool) -> Result<()> {
        let unnamed = Details::default();
        let (id, named) = (&recording.id, recording.details_confirmed);
        let details = if named { &recording.details } else { &unnamed };
        let key = self.inner.layout.marker(marker, id);
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::ContentType, "application/octet-stream".into());
        for (name, value) in object_key::marker_metadata(id, details, owes_twilio) {
            attributes.insert(Attribute::Metadata(name.into()), value.into());
        }
        let options = PutOptions { attributes, ..PutOptions::default() };
        self.inner.control.put_opts(&path(&key)?, PutPayload::new(), options).await?;
        self.sync(&key).await
    }
}
