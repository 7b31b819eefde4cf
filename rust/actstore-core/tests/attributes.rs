//! The root's attributes are those of the newest record, whatever the root's `zarr.json` says after a kill.

use std::fs;
use std::path::{Path, PathBuf};

use actstore_core::format::zarr::ArraySpec;
use actstore_core::store::{Overwrite, Reader, Verify, Writer, compact, repair};
use actstore_core::{Kind, Task};
use serde_json::{Value, json};

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("actstore-attributes-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

fn column(name: &str) -> ArraySpec {
    serde_json::from_value(json!({
        "name": name, "shape": [], "dtype": "uint8", "codec": "blosc", "chunk_rows": 4, "shard_rows": 8,
        "dimension_names": ["row"],
    }))
    .unwrap()
}

fn table(sites: &[&str]) -> Value {
    json!({"actstore": {"format": 1, "sites": sites, "commits": "commits"}})
}

fn create(path: &Path) -> Writer {
    Writer::create(path, table(&["a"]), &[column("a")], json!(0), Overwrite::Never, 1).unwrap()
}

fn append(writer: &mut Writer, name: &str, rows: &[u8]) {
    writer.append(&[(name, rows)], &Task::new(1)).unwrap();
}

fn commit(writer: &mut Writer, state: i32) {
    writer.commit(json!(state), &Task::new(1)).unwrap();
}

fn truth(path: &Path) -> Value {
    Reader::open(path, Verify::Always).unwrap().attributes().clone()
}

fn root(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path.join("zarr.json")).unwrap()).unwrap()
}

fn record(path: &Path, number: u64) -> Value {
    let text = fs::read(path.join(format!("commits/{number:020}.json"))).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["record"].clone()
}

/// A store as a kill between the record and the root leaves it: record 2 adds the site `b`, the root does not have it.
fn killed(path: &Path) {
    let mut writer = create(path);
    append(&mut writer, "a", &[1; 11]);
    commit(&mut writer, 1);
    let before = fs::read(path.join("zarr.json")).unwrap();
    writer.add_arrays(&[column("b")]).unwrap();
    append(&mut writer, "b", &[2; 11]);
    writer.set_attributes(table(&["a", "b"])).unwrap();
    assert_eq!(truth(path), table(&["a"]), "nothing changes before the commit");
    commit(&mut writer, 2);
    drop(writer);
    fs::write(path.join("zarr.json"), before).unwrap();
}

#[test]
fn a_root_that_lags_by_one_record_is_read_and_rolled_forward() {
    let path = folder("lags");
    killed(&path);
    assert_eq!(root(&path)["attributes"], table(&["a"]));
    assert_eq!(truth(&path), table(&["a", "b"]));
    let reader = Reader::open(&path, Verify::Always).unwrap();
    assert!(reader.verify(true, &Task::new(1)).unwrap().leftovers.is_empty());
    assert_eq!(reader.array("b").unwrap().rows(), 11);
    drop(Writer::append_to(&path, 1).unwrap());
    assert_eq!(root(&path)["attributes"], table(&["a", "b"]));
    assert!(root(&path).pointer("/consolidated_metadata/metadata/b").is_some());
    assert_eq!(truth(&path), table(&["a", "b"]));
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_lost_root_is_restored_with_the_attributes_of_the_newest_record() {
    let path = folder("lost");
    killed(&path);
    fs::remove_file(path.join("zarr.json")).unwrap();
    assert_eq!(repair(&path).unwrap(), ["zarr.json"]);
    assert_eq!(root(&path)["attributes"], table(&["a", "b"]));
    assert_eq!(truth(&path), table(&["a", "b"]));
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_compaction_goes_on_from_a_root_that_lags() {
    let path = folder("compacted");
    killed(&path);
    compact(&path, &Task::new(1)).unwrap();
    assert_eq!((truth(&path), &root(&path)["attributes"]), (table(&["a", "b"]), &table(&["a", "b"])));
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn records_that_change_nothing_inherit_the_attributes() {
    let path = folder("inherit");
    let mut writer = create(&path);
    for i in 1..4 {
        append(&mut writer, "a", &[1; 3]);
        commit(&mut writer, i);
    }
    writer.set_attributes(table(&["a", "later"])).unwrap();
    commit(&mut writer, 3);
    for i in 4..24 {
        append(&mut writer, "a", &[1; 3]);
        commit(&mut writer, i);
        assert_eq!(truth(&path), table(&["a", "later"]));
    }
    let numbers = (0..24).filter(|n| path.join(format!("commits/{n:020}.json")).exists());
    let (mut checkpoints, mut increments) = (0, 0);
    for number in numbers {
        let record = record(&path, number);
        let is_checkpoint = record["checkpoint"] == record["number"];
        assert_eq!(record.get("attributes").is_some(), is_checkpoint || number == 4, "record {number}");
        checkpoints += i32::from(is_checkpoint);
        increments += i32::from(!is_checkpoint);
    }
    assert!(checkpoints > 0 && increments > 0);
    drop(writer);
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_commit_of_attributes_alone_is_a_commit() {
    let path = folder("alone");
    let mut writer = create(&path);
    writer.set_attributes(table(&["a"])).unwrap();
    assert_eq!(writer.commit(json!(0), &Task::new(1)).unwrap(), 0, "they are the same");
    writer.set_attributes(table(&["b"])).unwrap();
    assert_eq!(writer.commit(json!(0), &Task::new(1)).unwrap(), 1);
    assert_eq!(root(&path)["attributes"], table(&["b"]));
    for wrong in [json!([]), json!({}), json!({"actstore": {"commits": null}})] {
        assert_eq!(writer.set_attributes(wrong).unwrap_err().kind, Kind::InvalidInput);
    }
    drop(writer);
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_root_two_records_behind_is_damage() {
    let path = folder("behind");
    killed(&path);
    let old = fs::read(path.join("zarr.json")).unwrap();
    let mut writer = Writer::append_to(&path, 1).unwrap();
    append(&mut writer, "a", &[1; 3]);
    commit(&mut writer, 3);
    drop(writer);
    fs::write(path.join("zarr.json"), old).unwrap();
    assert_eq!(Reader::open(&path, Verify::Always).err().unwrap().kind, Kind::Checksum);
    fs::remove_dir_all(&path).unwrap();
}

#[test]
fn what_a_killed_writer_added_to_the_root_is_removed() {
    let path = folder("leftovers");
    let mut writer = create(&path);
    // Everything up to the record, which is missing: the state of step 2c.
    writer.add_groups(&[("artifacts/w".to_string(), json!({"actstore": {"artifact": {}}}))].into()).unwrap();
    writer.add_arrays(&[column("later"), column("artifacts/w/mean")]).unwrap();
    let before = fs::read(path.join("zarr.json")).unwrap();
    commit(&mut writer, 1);
    drop(writer);
    fs::remove_file(path.join("commits/00000000000000000001.json")).unwrap();
    fs::write(path.join("zarr.json"), before).unwrap();
    fs::create_dir(path.join("mine")).unwrap();
    fs::write(path.join("mine/zarr.json"), r#"{"zarr_format":3,"node_type":"group","attributes":{}}"#).unwrap();
    let found = Reader::open(&path, Verify::Always).unwrap().verify(true, &Task::new(1)).unwrap().leftovers;
    assert_eq!(
        {
            let mut found = found;
            found.sort();
            found
        },
        ["artifacts", "later"]
    );
    drop(Writer::append_to(&path, 1).unwrap());
    assert!(!path.join("artifacts").exists() && !path.join("later").exists() && path.join("mine").exists());
    fs::remove_dir_all(&path).unwrap();
}
