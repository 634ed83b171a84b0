//! The controls: decoded changes made wrong in one place, which a comparison must find.

use anyhow::{Context, Result};

use super::{Change, Decoded, Kind, Row, Value};

/// What is made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// One value of a new row has another last character.
    Value,
    /// One value of an old row is another.
    OldValue,
    /// One value is NULL.
    Null,
    /// One change is not there.
    Change,
    /// Two transactions have changed places.
    Order,
    /// Two changes within a transaction have changed places.
    OrderWithin,
    /// One column of an old row is not there.
    OldColumn,
    /// Two columns of a new row have changed places.
    ColumnOrder,
    /// One message has another content.
    Message,
    /// The last transaction is not there.
    End,
}

impl Spoil {
    /// Every one.
    pub const ALL: [Self; 10] = [
        Self::Value,
        Self::OldValue,
        Self::Null,
        Self::Change,
        Self::Order,
        Self::OrderWithin,
        Self::OldColumn,
        Self::ColumnOrder,
        Self::Message,
        Self::End,
    ];

    /// Spoils a copy, in the middle of it or after.
    ///
    /// # Errors
    /// There is nothing to spoil.
    pub fn apply(self, decoded: &Decoded) -> Result<Decoded> {
        let mut spoiled = decoded.clone();
        self.spoil(&mut spoiled).with_context(|| format!("nothing to spoil for {self:?}"))?;
        Ok(spoiled)
    }

    fn spoil(self, decoded: &mut Decoded) -> Option<()> {
        let middle = decoded.transactions.len() / 2;
        let behind = decoded.transactions.get_mut(middle..)?;
        let mut changes = behind.iter_mut().flat_map(|transaction| &mut transaction.changes);
        match self {
            Self::Value => {
                let mut columns =
                    changes.filter_map(|change| change.new.as_mut()).flat_map(|row| &mut row.0);
                columns.find_map(|column| other_end(&mut column.value))?;
            }
            Self::OldValue => {
                let mut columns = changes.filter_map(judged_old_row).flat_map(|row| &mut row.0);
                columns.find_map(|column| other_end(&mut column.value))?;
            }
            Self::Null => {
                let rows = changes.filter_map(|change| change.new.as_mut());
                let mut columns = rows.flat_map(|row| &mut row.0);
                let is_text = |value: &Value| matches!(value, Value::Text(_));
                columns.find(|column| is_text(&column.value))?.value = Value::Null;
            }
            Self::Change => {
                behind
                    .iter_mut()
                    .find(|transaction| transaction.changes.len() > 2)?
                    .changes
                    .remove(1);
            }
            Self::Order => {
                let at = behind.windows(2).position(|pair| pair[0].changes != pair[1].changes)?;
                behind.swap(at, at + 1);
            }
            Self::OrderWithin => {
                let differ = |pair: &[Change]| {
                    pair[0] != pair[1] && pair.iter().any(|change| change.kind != Kind::Truncate)
                };
                behind.iter_mut().find_map(|transaction| {
                    let at = transaction.changes.windows(2).position(differ)?;
                    transaction.changes.swap(at, at + 1);
                    Some(())
                })?;
            }
            Self::OldColumn => {
                changes.find_map(judged_old_row)?.0.remove(0);
            }
            Self::ColumnOrder => {
                let mut rows = changes.filter_map(|change| change.new.as_mut());
                rows.find(|row| row.0.len() > 1)?.0.swap(0, 1);
            }
            Self::Message => {
                changes.find_map(|change| change.message.as_mut())?.content.push(b'.');
            }
            Self::End => {
                decoded.transactions.pop()?;
            }
        }
        Some(())
    }
}

/// An old row of which the judge has all columns, too: that of a table whose name says so.
fn judged_old_row(change: &mut Change) -> Option<&mut Row> {
    let is_full = change.relation.as_ref()?.table.contains("full");
    change.old.as_mut().filter(|row| is_full && row.0.len() > 1)
}

fn other_end(value: &mut Value) -> Option<()> {
    let Value::Text(text) = value else { return None };
    let last = text.pop()?;
    text.push(if last == '7' { '8' } else { '7' });
    Some(())
}
