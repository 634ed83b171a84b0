//! The judge of two servers' rows, and the proof that it can find against them.

use anyhow::Result;
use integration::compare::compare_servers;
use integration::{BackupWal, Binaries, Cluster, ClusterOptions, Scratch};

const TABLES: &str = r#"
    create schema "odd |schema";
    create table "odd |schema"."Odd ""table" (it text, "T" int, t float8, at timestamptz);
    insert into "odd |schema"."Odd ""table" select 'x' || n % 7, n % 3, n / 7.0, to_timestamp(n)
        from generate_series(1, 1000) n;
    create table twice (a int);
    insert into twice values (1), (1), (2), (null);
    create table empty ();
    create table parted (a int, b text) partition by range (a);
    create table parted_low partition of parted for values from (0) to (10);
    create table parted_high partition of parted for values from (10) to (20);
    insert into parted select n, repeat('long', 5000) || n from generate_series(0, 19) n;
    create unlogged table forgotten (a int);
    insert into forgotten values (1);
    create materialized view seen as select count(*) from twice;
    create view unseen as select random();
"#;

#[test]
fn every_spoiled_row_is_noticed() -> Result<()> {
    let scratch = Scratch::new()?;
    let leader = Cluster::start_new(&scratch, "leader", &ClusterOptions::default())?;
    leader.sql(TABLES)?;
    leader.sql("create database other")?;
    leader
        .endpoint()
        .sql_in("other", "create table there (a int); insert into there values (7)")?;
    let copy = scratch.path().join("copy");
    leader.base_backup(&copy, BackupWal::Stream)?;
    let mut second = Cluster::at(&scratch, "second", &copy, Binaries::find()?)?;
    second.start()?;

    let comparison = compare_servers(leader.endpoint(), second.endpoint())?;
    println!("{comparison}");
    assert!(comparison.all_equal());
    assert_eq!((comparison.compared(), comparison.rows()), (7, 1000 + 4 + 20 + 1 + 1));
    let text = comparison.to_string();
    for name in [r#"postgres."odd |schema"."Odd ""table""#, "other.public.there", "public.seen"] {
        assert!(text.contains(name), "{name}");
    }

    // Negative controls, each undone: it is the last one alone that is noticed.
    let spoilers = [
        ("postgres", "update twice set a = 3 where a = 2", "update twice set a = 2 where a = 3"),
        (
            "postgres",
            "insert into twice values (1)",
            "delete from twice where ctid = (select max(ctid) from twice where a = 1)",
        ),
        (
            "postgres",
            "insert into twice values (null)",
            "delete from twice where a is null and ctid = (select max(ctid) from twice)",
        ),
        (
            "postgres",
            r#"update "odd |schema"."Odd ""table" set t = t + 1e-12 where "T" = 0"#,
            r#"update "odd |schema"."Odd ""table" set t = t - 1e-12 where "T" = 0"#,
        ),
        ("postgres", "create table more (a int)", "drop table more"),
        ("other", "delete from there", "insert into there values (7)"),
        ("other", "drop table there", "create table there (a int); insert into there values (7)"),
    ];
    for (database, spoil, undo) in spoilers {
        second.endpoint().sql_in(database, spoil)?;
        let comparison = compare_servers(leader.endpoint(), second.endpoint())?;
        assert_eq!(comparison.different(), 1, "{spoil}\n{comparison}");
        assert!(!comparison.all_equal());
        second.endpoint().sql_in(database, undo)?;
    }
    // Rows that come back in another order are the same rows.
    second.sql("begin; create temp table again as select * from twice; truncate twice; insert into twice select * from again order by a desc; commit")?;
    assert_ne!(leader.sql("select a from twice")?, second.sql("select a from twice")?);
    assert!(compare_servers(leader.endpoint(), second.endpoint())?.all_equal());
    Ok(())
}
