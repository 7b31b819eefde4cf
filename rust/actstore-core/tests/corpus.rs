//! Every input that the fuzzer (rust/fuzz) found worth keeping, run through what it was found for: nothing
//! panics, nothing asks for more memory than it may.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

#[test]
fn the_corpus_is_harmless() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    // One after the other: memory is counted for the whole process.
    for (name, target) in fuzz::targets::TARGETS {
        let folder = corpus.join(name);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        paths.sort();
        assert!(paths.len() > 10, "{} has no corpus", folder.display());
        for path in paths {
            eprintln!("{}", path.display());
            target(&fs::read(&path).expect("a file"));
        }
    }
}
