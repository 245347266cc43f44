/**
 * Goal: a config file becomes exactly what it says, and whatever is wrong in one is told at its line and column with
 * the key and the reason, everything at once.
 *
 * Method: the example of the documentation is read and compared; then a table of files with one mistake each, of
 * which the place is asserted; then one with many.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import t from 'tap';
import { readConfig, readConfigFile } from './read-config.ts';

const EXAMPLE = fileURLToPath(new URL('../../../docs/examples/cowbell.yaml', import.meta.url));

const byName = (one: string, other: string): number => one.localeCompare(other);

/** The problems of a text, as `line:column path: reason`. */
function problemsOf(text: string): readonly string[] {
  const result = readConfig(text, '/etc/cowbell');
  if ('value' in result) return [];
  return result.problems.map(({ line, column, path, reason }) => `${line}:${column} ${path}: ${reason}`);
}

t.test('the example of the documentation says everything there is', async (t) => {
  const config = await readConfigFile(EXAMPLE);
  const [web, scratch] = config.volumes;
  const [nightly, away, hourly] = web?.policies ?? [];
  t.strictSame(config.listeners, [
    { place: { kind: 'unix', path: '/run/cowbell/all.sock' }, exports: undefined },
    { place: { kind: 'tcp', host: '127.0.0.1', port: 10_809 }, exports: ['web'] },
  ]);
  t.strictSame(config.tls, { directory: '/etc/pki/cowbell', policy: 'required', verifyPeer: true });
  t.equal(web?.directory, '/srv/cowbell/web');
  t.strictSame(web?.survive, {
    storePath: '/mnt/away/store',
    key: { keyFile: '/etc/cowbell/away.key' },
    spareDirectory: '/spare',
  });
  t.equal(web?.minimumCopies, 2);
  t.strictSame(nightly, {
    name: 'nightly',
    conditions: [
      { kind: 'schedule', pattern: '30 2 * * *', timeZone: 'Europe/Berlin' },
      { kind: 'changed', bytes: 20 * 2 ** 30 },
      { kind: 'deltas', fill: 0.7 },
    ],
    jitterMs: 1_200_000,
    graceMs: 7_200_000,
    catchUp: true,
    action: {
      kind: 'backup',
      params: {
        store: '/backup/store',
        level: 'auto',
        fullEvery: 60,
        style: {
          codec: 'zstd',
          compressionLevel: 3,
          lanes: ['/backup/second-disk'],
          rateBytesPerSecond: 200 * 2 ** 20,
        },
        container: [
          { kind: 'memory', sizeBytes: 256 * 2 ** 20 },
          { kind: 'path', path: '/var/tmp/cowbell', sizeBytes: 8 * 2 ** 30 },
        ],
        maxWaitMs: 20_000,
        hooks: {
          pre: '/etc/cowbell/freeze web1 /data',
          post: '/etc/cowbell/freeze web1 /data',
          timeoutMs: 30_000,
        },
        notify: 'logger -t cowbell "$COWBELL_EVENT $COWBELL_VOLUME"',
      },
      key: undefined,
      retention: {
        keepLast: 3,
        keepHourly: 0,
        keepDaily: 14,
        keepWeekly: 8,
        keepMonthly: 12,
        keepYearly: 5,
      },
    },
  });
  t.match(away, {
    conditions: [{ kind: 'every', everyMs: 7 * 86_400_000 }],
    action: {
      params: { store: '/mnt/away/store', level: 'full' },
      key: { keyFile: '/etc/cowbell/away.key' },
    },
  });
  t.strictSame(hourly, {
    name: 'hourly',
    conditions: [{ kind: 'schedule', pattern: '@hourly', timeZone: 'UTC' }],
    jitterMs: 0,
    graceMs: 3_600_000,
    catchUp: false,
    action: { kind: 'snapshot', prefix: 'auto-', suffix: '', keep: 24 },
  });
  t.strictSame(scratch, {
    directory: '/srv/cowbell/scratch',
    survive: undefined,
    minimumCopies: undefined,
    policies: [],
  });
});

t.test('every key of the example is known to the documentation, and the other way round', async (t) => {
  const policy = readFileSync(new URL('../../../docs/policy.md', import.meta.url), 'utf8');
  const documented = new Set(Array.from(policy.matchAll(/^\| `([a-zA-Z]+)`/gm), (match) => match[1] ?? ''));
  const example = readFileSync(EXAMPLE, 'utf8').replace(/#.*/g, '');
  const used = new Set(
    Array.from(example.matchAll(/^[ -]*([a-zA-Z]+):(?: |$)/gm), (match) => match[1] ?? ''),
  );
  for (const name of ['near', 'away']) used.delete(name);
  // The other key of a store, of which only one may be there.
  used.add('passphraseFile');
  t.strictSame([...documented].toSorted(byName), [...used].toSorted(byName));
});

t.test('JSON is read, relative paths are relative to the file, aliases stand for whole values', async (t) => {
  const json = readConfig(
    '{"volumes":[{"path":"vol"},{"path":"../x"}],"sockets":["all.sock=vol"]}',
    '/etc/cowbell',
  );
  t.match(json, {
    value: {
      volumes: [{ directory: '/etc/cowbell/vol' }, { directory: '/etc/x' }],
      listeners: [{ place: { path: '/etc/cowbell/all.sock' }, exports: ['vol'] }],
    },
  });
  const aliased = readConfig(
    `stores: {s: {path: /s}}
volumes:
  - path: /a
    policies: &usual
      - {name: p, when: {every: 1h}, do: backup, store: s}
  - path: /b
    policies: *usual
`,
    '/',
  );
  t.match(aliased, { value: { volumes: [{}, { policies: [{ name: 'p' }] }] } });
});

/** A policy on lines 4 on, of which the given lines are part. */
function withPolicy(...lines: readonly string[]): string {
  return ['stores: {s: {path: /s}}', 'volumes:', '- path: /v', '  policies:', ...lines].join('\n');
}

const AT = 'volumes[0].policies[0]';
const GOOD = ['  - name: p', '    when: {every: 1h}', '    do: backup', '    store: s'];

const MISTAKES: readonly (readonly [text: string, problem: string])[] = [
  ['', '1:1 : It is empty, wanted a map with one of timeZone, stores, listen, sockets, tls, volumes'],
  ['- 1', '1:1 : It is a list, wanted a map with one of timeZone, stores, listen, sockets, tls, volumes'],
  ['stores: {}', '1:1 : volumes is missing, wanted here'],
  ['volumes: []', '1:10 volumes: It has no members, wanted at least one volume'],
  ['volumes:\n- path: /v\n- path: /x/v', '3:3 volumes[1]: Volumes /v and /x/v would both be exported as v'],
  ['volumes:\n- path: /v\n- path: /v', '3:3 volumes[1]: Volume /v is named twice, wanted once'],
  ['volume: []\nvolumes: [{path: /v}]', '1:1 volume: The key is not known, did you mean volumes?'],
  [
    'volumes:\n- path: /v\n  zzz: 1',
    '3:3 volumes[0].zzz: The key is not known, wanted one of path, survive, minimumCopies, policies',
  ],
  [
    'volumes:\n- minimumCopies: 0\n  path: /v',
    "2:18 volumes[0].minimumCopies: It is '0', wanted a whole number from 1 to 16",
  ],
  [
    'stores: {s: {path: /s}}\nvolumes:\n- path: /v\n  survive: {store: t}',
    "4:20 volumes[0].survive.store: There is no store 't', wanted one of s",
  ],
  [
    'stores: {s: {path: /s}}\nvolumes:\n- path: /v\n  survive: {spare: /x}',
    '4:12 volumes[0].survive: store is missing, wanted here',
  ],
  ['volumes:\n- path: /v\n  path: /w', '3:3 : Map keys must be unique'],
  ['volumes:\n- path: /v\n bad', '3:1 : '],
  [
    'timeZone: Mars/Base\nvolumes: [{path: /v}]',
    "1:11 timeZone: It is 'Mars/Base', wanted a time zone such as UTC or Europe/Berlin",
  ],
  [
    'listen: [nowhere]\nvolumes: [{path: /v}]',
    "1:10 listen[0]: It is 'nowhere', wanted <host>:<port> with a port up to 65535, such as 127.0.0.1:10809",
  ],
  ['sockets: [/s=w]\nvolumes: [{path: /v}]', "1:11 sockets[0]: No volume is named 'w', wanted v"],
  [
    'tls: {directory: /d}\nvolumes: [{path: /v}]',
    '1:6 tls: It is given without listen and sockets, which it would be for',
  ],
  [
    'stores: {a b: {path: /s}}\nvolumes: [{path: /v}]',
    "1:15 stores.a b: The name of the store is 'a b', wanted up to 64 letters, digits, '.', '_' and '-', the first no '.' or '-'",
  ],
  [
    'stores: {s: {path: /s, keyFile: /k, passphraseFile: /p}}\nvolumes: [{path: /v}]',
    '1:53 stores.s.passphraseFile: It is given beside keyFile, wanted one of them',
  ],
  [withPolicy('  - name: p', '    do: backup', '    store: s'), `5:5 ${AT}: when is missing, wanted here`],
  [
    withPolicy(...GOOD, ...GOOD),
    '9:5 volumes[0].policies[1]: Policy p is there twice, wanted names of their own',
  ],
  [
    withPolicy('  - name: p', '    when: {}', ...GOOD.slice(2)),
    `6:11 ${AT}.when: No condition is given, wanted schedule, every, changed or deltas`,
  ],
  [
    withPolicy('  - name: p', '    when: {schedule: 61 * * * *}', ...GOOD.slice(2)),
    `6:22 ${AT}.when.schedule: The schedule is '61 * * * *', wanted minute, hour, day of month, month and day of week: Invalid value for minute: 61`,
  ],
  [
    withPolicy('  - name: p', '    when: {schedule: 0 0 31 2 *}', ...GOOD.slice(2)),
    `6:22 ${AT}.when.schedule: The schedule is '0 0 31 2 *', which never comes`,
  ],
  [
    withPolicy('  - name: p', '    when: {every: 6}', ...GOOD.slice(2)),
    `6:19 ${AT}.when.every: It is '6', wanted a time such as 30s, 5m, 6h, 1d or 2w`,
  ],
  [
    withPolicy('  - name: p', '    when: {every: 0s}', ...GOOD.slice(2)),
    `6:19 ${AT}.when.every: It is '0s', wanted from 1s to 366d`,
  ],
  [
    withPolicy('  - name: p', '    when: {changed: lots}', ...GOOD.slice(2)),
    `6:21 ${AT}.when.changed: It is 'lots', wanted bytes or a number with K, M, G or T, such as 10G, more than 0`,
  ],
  [
    withPolicy('  - name: p', '    when: {deltas: 70}', ...GOOD.slice(2)),
    `6:20 ${AT}.when.deltas: It is '70', wanted a share above 0% and up to 100%, such as 70%`,
  ],
  [
    withPolicy('  - name: p', '    when: [{every: 1h}, {evry: 2h}]', ...GOOD.slice(2)),
    `6:26 ${AT}.when[1].evry: The key is not known, did you mean every?`,
  ],
  [
    withPolicy(...GOOD.slice(0, 3), '    store: t'),
    `8:12 ${AT}.store: There is no store 't', wanted one of s`,
  ],
  [withPolicy(...GOOD.slice(0, 3)), `5:5 ${AT}: store is missing, wanted the name of one of the stores`],
  [
    withPolicy(...GOOD, '    level: ful'),
    `9:12 ${AT}.level: It is 'ful', wanted one of auto, full, differential, incremental; is full meant?`,
  ],
  [
    withPolicy(...GOOD, '    keep-last: 3'),
    `9:5 ${AT}.keep-last: The key is not known, wanted one of name, when`,
  ],
  [
    withPolicy(...GOOD, '    retention: {keep-last: 3}'),
    `9:17 ${AT}.retention.keep-last: The key is not known, did you mean keepLast?`,
  ],
  [
    withPolicy(...GOOD, '    retention: {keepLast: 0}'),
    `9:16 ${AT}.retention: No rule keeps a set, wanted at least one such as keepDaily: 7`,
  ],
  [
    withPolicy(...GOOD, '    maxWait: 10s'),
    `9:14 ${AT}.maxWait: It is given and writes wait, wanted onFull: cancel too`,
  ],
  [
    withPolicy(...GOOD, '    hookTimeout: 10s'),
    `9:18 ${AT}.hookTimeout: It is given without a hook, wanted preFreeze or postFreeze too`,
  ],
  [withPolicy(...GOOD, '    preFreeze: ""'), `9:16 ${AT}.preFreeze: It is empty, wanted a shell command`],
  [
    withPolicy(...GOOD, '    codec: lz4'),
    `9:12 ${AT}.codec: It is lz4, wanted zstd, zstd:<level> with a level of -7 to 19, fast or none`,
  ],
  [
    withPolicy(...GOOD, '    container: [disk]'),
    `9:17 ${AT}.container[0]: It is 'disk', wanted memory:<size> or <path>:<size>`,
  ],
  [withPolicy(...GOOD, '    lanes: [/l, /l]'), `9:12 ${AT}.lanes: Lane /l is named twice, wanted once`],
  [withPolicy(...GOOD, '    catchUp: no'), `9:14 ${AT}.catchUp: It is 'no', wanted true or false`],
  [
    withPolicy(...GOOD, '    snapshot: {keep: 3}'),
    `9:15 ${AT}.snapshot: It is of snapshots only, and the policy does a backup`,
  ],
  [
    withPolicy('  - name: p', '    when: {every: 1h}', '    do: snapshot'),
    `5:5 ${AT}: snapshot is missing, wanted how many to keep`,
  ],
  [
    withPolicy(
      '  - name: p',
      '    when: {every: 1h}',
      '    do: snapshot',
      '    snapshot: {keep: 1}',
      '    rate: 1M',
    ),
    `9:11 ${AT}.rate: It is of backups only, and the policy does a snapshot`,
  ],
  [
    withPolicy(
      '  - name: p',
      '    when: {every: 1h}',
      '    do: snapshot',
      '    snapshot: {keep: 1, name: x}',
    ),
    `8:31 ${AT}.snapshot.name: It is 'x', wanted letters`,
  ],
  [
    withPolicy('  - name: p', '    when: {deltas: 50%}', '    do: snapshot', '    snapshot: {keep: 1}'),
    `6:11 ${AT}.when: The condition deltas is given, and a snapshot takes nothing from the delta store`,
  ],
];

for (const [index, [text, wanted]] of MISTAKES.entries()) {
  t.test(`mistake ${index}: ${wanted}`, async (t) => {
    const found = problemsOf(text);
    t.equal(found.length, 1, found.join('\n'));
    t.ok(found[0]?.startsWith(wanted), `${found[0]}`);
  });
}

t.test('all mistakes are told at once, in the order of their lines, each once', async (t) => {
  const found = problemsOf(
    `stores:
  good: {path: /s}
  bad: {keyFil: /k}
volumes:
  - path: /v
    policies:
      - name: one
        when: {every: soon}
        do: backup
        store: bad
      - name: -two
        do: nothing
        store: elsewhere
  - {}
`,
  );
  t.strictSame(
    found.map((line) => line.slice(0, line.indexOf(': '))),
    [
      '3:8 stores.bad',
      '3:9 stores.bad.keyFil',
      '8:23 volumes[0].policies[0].when.every',
      '11:9 volumes[0].policies[1]',
      '11:15 volumes[0].policies[1].name',
      '12:13 volumes[0].policies[1].do',
      '13:16 volumes[0].policies[1].store',
      '14:5 volumes[1]',
    ],
    found.join('\n'),
  );
});

t.test('whatever is in a file, there is a config or there are problems, each at a place in it', async (t) => {
  const example = readFileSync(EXAMPLE, 'utf8');
  const scraps = [
    ': ',
    '- ',
    '\n',
    '  ',
    '{',
    ']',
    '&a ',
    '*a',
    '#',
    '"',
    "'",
    '!!map ',
    '<<: ',
    'null',
    '\t',
    '---\n',
    '0',
  ];
  const edit = fc.record({
    at: fc.nat(example.length),
    remove: fc.nat(12),
    insert: fc.oneof(fc.constantFrom(...scraps), fc.string({ maxLength: 3 })),
  });
  let sound = 0;
  fc.assert(
    fc.property(fc.array(edit, { minLength: 1, maxLength: 4 }), (edits) => {
      const source = edits.reduce(
        (before, { at, remove, insert }) => before.slice(0, at) + insert + before.slice(at + remove),
        example,
      );
      const lineCount = source.split('\n').length;
      const result = readConfig(source, '/');
      if ('value' in result) sound += 1;
      else if (result.problems.length === 0) throw new Error('neither a config nor a problem');
      else if (
        result.problems.some(
          ({ line, column, reason }) => line < 1 || line > lineCount || column < 1 || reason === '',
        )
      )
        throw new Error(JSON.stringify(result.problems));
    }),
    { numRuns: 300 },
  );
  t.comment(`${sound} of 300 are sound`);
});

t.test('a file that cannot be read, or is wrong, is an error with a sentence', async (t) => {
  const directory = t.testdir({ 'bad.yaml': 'volumes: [{pat: /v}]' });
  await t.rejects(readConfigFile(`${directory}/none`), {
    code: 'bad-config',
    message: /cannot be read: ENOENT/,
  });
  const wrong = readConfigFile(`${directory}/bad.yaml`);
  await t.rejects(wrong, {
    code: 'bad-config',
    message: `Config ${directory}/bad.yaml:1:11 is wrong: volumes[0]: path is missing, wanted here, and 1 more`,
    lines: [
      `${directory}/bad.yaml:1:11: volumes[0]: path is missing, wanted here`,
      `${directory}/bad.yaml:1:12: volumes[0].pat: The key is not known, did you mean path?`,
    ],
  });
});
