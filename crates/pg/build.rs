//! The numbers of Postgres's catalogs, of their indexes and of their columns, out of the headers of the server that this is
//! built for: they differ between versions, and pgrx has bindings for a few only.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// What is read of each header.
const NAMES: &[(&str, &[&str])] = &[
    ("pg_amop", &["AccessMethodOperatorRelationId"]),
    ("pg_amproc", &["AccessMethodProcedureRelationId"]),
    ("pg_attrdef", &["AttrDefaultRelationId"]),
    ("pg_attribute", &["AttributeRelidNumIndexId"]),
    ("pg_cast", &["CastRelationId"]),
    ("pg_class", &["ClassOidIndexId"]),
    (
        "pg_constraint",
        &[
            "Anum_pg_constraint_conrelid",
            "Anum_pg_constraint_oid",
            "ConstraintRelationId",
            "ConstraintRelidTypidNameIndexId",
        ],
    ),
    (
        "pg_depend",
        &[
            "Anum_pg_depend_classid",
            "Anum_pg_depend_deptype",
            "Anum_pg_depend_objid",
            "Anum_pg_depend_objsubid",
            "Anum_pg_depend_refclassid",
            "Anum_pg_depend_refobjid",
            "DependDependerIndexId",
            "DependReferenceIndexId",
            "DependRelationId",
        ],
    ),
    ("pg_extension", &["ExtensionNameIndexId"]),
    ("pg_index", &["IndexRelationId", "IndexRelidIndexId"]),
    ("pg_language", &["ClanguageId", "INTERNALlanguageId"]),
    ("pg_namespace", &["NamespaceNameIndexId"]),
    ("pg_opclass", &["OperatorClassRelationId"]),
    ("pg_operator", &["OperatorOidIndexId", "OperatorRelationId"]),
    ("pg_opfamily", &["OperatorFamilyRelationId"]),
    ("pg_policy", &["PolicyRelationId"]),
    ("pg_proc", &["Anum_pg_proc_oid", "ProcedureOidIndexId"]),
    ("pg_rewrite", &["RewriteRelationId"]),
    ("pg_sequence", &["Anum_pg_sequence_seqstart"]),
    ("pg_statistic_ext", &["StatisticExtRelationId"]),
    (
        "pg_subscription_rel",
        &[
            "Anum_pg_subscription_rel_srrelid",
            "Anum_pg_subscription_rel_srsubid",
            "SubscriptionRelRelationId",
            "SubscriptionRelSrrelidSrsubidIndexId",
        ],
    ),
    ("pg_trigger", &["TriggerRelationId"]),
    ("pg_type", &["TypeOidIndexId"]),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=PGRX_PG_CONFIG_PATH");
    let pg_config = env::var("PGRX_PG_CONFIG_PATH").map_err(
        |_| "PGRX_PG_CONFIG_PATH names no pg_config: build with `make`, or set it to the server's",
    )?;
    let headers = headers(&pg_config)?;
    let mut constants = String::new();
    for (catalog, names) in NAMES {
        // Made of the catalog's definition; nothing in it but such lines and comments.
        let header = headers.join("catalog").join(format!("{catalog}_d.h"));
        println!("cargo::rerun-if-changed={}", header.display());
        let text = fs::read_to_string(&header)
            .map_err(|error| format!("{}: {error}", header.display()))?;
        for name in *names {
            let number = number(&text, name)
                .ok_or_else(|| format!("{} does not define {name}", header.display()))?;
            if name.starts_with("Anum_") {
                writeln!(constants, "pub const {name}: i16 = {number};")?;
            } else {
                writeln!(constants, "pub const {name}: Oid = Oid::from_u32({number});")?;
            }
        }
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("catalogs.rs"), constants)?;
    Ok(())
}

fn headers(pg_config: &str) -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(pg_config)
        .arg("--includedir-server")
        .output()
        .map_err(|error| format!("{pg_config}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{pg_config} --includedir-server failed").into());
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim_end()))
}

fn number(header: &str, name: &str) -> Option<u32> {
    header.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_it = words.next() == Some("#define") && words.next() == Some(name);
        is_it.then(|| words.next()?.parse().ok()).flatten()
    })
}
