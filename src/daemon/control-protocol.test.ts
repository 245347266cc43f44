/**
 * Goal: well-formed lines survive the wire; anything else is refused with a sentence, never with a throw.
 *
 * Method: round trips; a table of wrong lines with what the answer must name; garbage by property.
 */

import fc from 'fast-check';
import t from 'tap';
import { CorruptionError } from '../base/index.ts';
import { type ControlRequest, encodeLine, parseReply, parseRequest } from './control-protocol.ts';
import { DaemonError, fromWireError, RemoteError, toWireError } from './errors.ts';

const BACKUP = {
  store: '/store',
  level: 'auto',
  style: { codec: 'zstd' },
  container: [
    { kind: 'memory', sizeBytes: 0 },
    { kind: 'path', path: '/var/tmp', sizeBytes: 4096 },
  ],
} as const;

const COPY = {
  targets: ['/copy.raw', 'nbd://host/export'],
  full: false,
  container: [{ kind: 'memory', sizeBytes: 4096 }],
} as const;

t.test('requests survive the wire', (t) => {
  const requests: readonly ControlRequest[] = [
    { id: 0, command: 'status' },
    { id: 1, command: 'show' },
    { id: 2, command: 'cancel', params: {} },
    { id: 3, command: 'cancel', params: { session: 'x' } },
    { id: Number.MAX_SAFE_INTEGER, command: 'backup', params: BACKUP },
    { id: 4, command: 'backup', params: { ...BACKUP, hooks: { pre: 'a', post: 'b', timeoutMs: 600_000 } } },
    { id: 5, command: 'backup', params: { ...BACKUP, hooks: { post: 'b', timeoutMs: 1000 } } },
    { id: 9, command: 'backup', params: { ...BACKUP, level: 'differential', fullEvery: 7, maxWaitMs: 500 } },
    { id: 7, command: 'backup', params: { ...BACKUP, key: { passphrase: 'correct horse' } } },
    { id: 8, command: 'backup', params: { ...BACKUP, key: { keyFile: '/root/store.key' } } },
    { id: 10, command: 'copy', params: COPY },
    { id: 11, command: 'copy-plan', params: { ...COPY, remap: '/plan.json', snapshot: 's', full: true } },
    { id: 12, command: 'copy', params: { ...COPY, maxWaitMs: 500, rateBytesPerSecond: 1 } },
    { id: 6, command: 'grow', params: { sizeBytes: 1_048_576 } },
    { id: 6, command: 'scrub', params: { repair: true, rateBytesPerSecond: 1000 } },
    { id: 6, command: 'scrub', params: { repair: false } },
    { id: 6, command: 'replace', params: { member: '/srv/a.raw', place: 'nbd://box/disk' } },
  ];
  for (const request of requests) {
    const line = encodeLine(request).toString();
    t.ok(line.endsWith('\n'));
    t.strictSame(parseRequest(line.trimEnd()), request);
  }
  t.end();
});

t.test('a key that is none is refused without being shown', (t) => {
  const secret = 'correct horse';
  const keys: readonly unknown[] = [
    secret,
    [secret],
    null,
    { secret },
    { passphrase: [secret] },
    { keyFile: secret },
    { passphrase: secret, keyFile: `/${secret}` },
  ];
  for (const key of keys) {
    const refused = parseRequest(JSON.stringify({ id: 1, command: 'backup', params: { ...BACKUP, key } }));
    t.ok('error' in refused);
    if (!('error' in refused)) continue;
    t.match(refused.error.message, /^Member key is neither a passphrase nor the absolute path of a keyFile/);
    t.notMatch(refused.error.message, secret);
  }
  t.end();
});

t.test('a medium in the place of a store', (t) => {
  const medium = { place: '/dev/nst0', label: 'monday', sizeBytes: 1024, load: './load', overwrite: true };
  const params = { ...BACKUP, level: 'full', medium };
  t.match(parseRequest(JSON.stringify({ id: 1, command: 'backup', params })), { params: { medium } });
  t.end();
});

t.test('hooks have half a minute unless said otherwise', (t) => {
  const params = { ...BACKUP, hooks: { pre: 'a' } };
  t.match(parseRequest(JSON.stringify({ id: 1, command: 'backup', params })), {
    params: { hooks: { pre: 'a', timeoutMs: 30_000 } },
  });
  t.end();
});

t.test('wrong requests are answered under their id, with what is wrong', (t) => {
  const cases: [string, number | null, RegExp][] = [
    ['', null, /no JSON/],
    ['{"id":1', null, /no JSON/],
    ['null', null, /is null, wanted an object/],
    ['[1]', null, /is \[1\], wanted an object/],
    ['{}', null, /Member id is missing/],
    ['{"id":"1","command":"status"}', null, /Member id is "1"/],
    ['{"id":-1,"command":"status"}', null, /Member id is -1/],
    ['{"id":1.5,"command":"status"}', null, /Member id is 1.5/],
    ['{"id":7}', 7, /Command missing is unknown, wanted one of status/],
    ['{"id":7,"command":"format"}', 7, /Command "format" is unknown/],
    ['{"id":7,"command":"cancel","params":3}', 7, /Member params is 3/],
    ['{"id":7,"command":"cancel","params":{"session":""}}', 7, /Member session is ""/],
    ['{"id":7,"command":"replace","params":{"member":"/a","place":"b"}}', 7, /Member place is "b"/],
    ['{"id":7,"command":"replace","params":{"place":"/b"}}', 7, /Member member is missing/],
    ['{"id":7,"command":"grow"}', 7, /Member sizeBytes is missing, wanted a whole number of bytes/],
    ['{"id":7,"command":"grow","params":{"sizeBytes":"1G"}}', 7, /Member sizeBytes is "1G"/],
    ['{"id":7,"command":"backup"}', 7, /Member store is missing/],
  ];
  const wrong: [object, RegExp][] = [
    [{ store: 'relative' }, /Member store is "relative", wanted an absolute path/],
    [{ level: 'weekly' }, /Member level is "weekly", wanted one of auto, full, differential, incremental/],
    [{ fullEvery: 0 }, /Member fullEvery is 0, wanted a whole number of sets from 1 to 960/],
    [{ maxWaitMs: 99 }, /Member maxWaitMs is 99, wanted a whole number of milliseconds from 100 to 3600000/],
    [{ maxWaitMs: '30s' }, /Member maxWaitMs is "30s"/],
    [{ fullEvery: 961 }, /Member fullEvery is 961/],
    [{ fullEvery: '7' }, /Member fullEvery is "7"/],
    [{ style: { codec: 'gzip' } }, /Member codec is "gzip"/],
    [{ style: { codec: 'zstd', compressionLevel: 40 } }, /Member compressionLevel is 40/],
    [{ style: { codec: 'zstd', rateBytesPerSecond: 0 } }, /Member rateBytesPerSecond is 0/],
    [{ style: { codec: 'zstd', lanes: ['here'] } }, /A member of lanes is "here"/],
    [{ container: 'memory' }, /Member container is "memory", wanted a list/],
    [{ container: [{ sizeBytes: -1 }] }, /Member sizeBytes is -1/],
    [{ container: [{ sizeBytes: 1, path: 'tmp' }] }, /Member path is "tmp"/],
    [{ medium: 'tape' }, /Member medium is "tape", wanted an object/],
    [{ medium: { label: 'a' } }, /Member place is missing/],
    [{ medium: { place: 'here', label: 'a' } }, /Member place is "here", wanted an absolute path/],
    [{ medium: { place: '/m', label: 'a b' } }, /Member label is "a b", wanted a label of media/],
    [{ medium: { place: '/m', label: 'a', sizeBytes: 0 } }, /Member sizeBytes is 0/],
    [{ medium: { place: '/m', label: 'a', load: '' } }, /Member load is ""/],
    [
      { medium: { place: '/m', label: 'a' }, level: 'incremental' },
      /Member level is "incremental", wanted auto or full where a medium is given/,
    ],
    [{ medium: { place: '/m', label: 'a' }, key: { passphrase: 'x' } }, /are for stores, wanted none/],
    [{ medium: { place: '/m', label: 'a' }, others: [] }, /are for stores, wanted none/],
    [{ hooks: 'sync' }, /Member hooks is "sync", wanted an object/],
    [{ hooks: {} }, /neither pre nor post/],
    [{ hooks: { pre: '' } }, /Member pre is ""/],
    [{ hooks: { pre: ['sync'] } }, /Member pre is \["sync"\]/],
    [{ hooks: { post: 'a\0b' } }, /Member post is "a.*, wanted no zero byte/],
    [{ hooks: { post: 'é'.repeat(8193) } }, /Member post has 16386 bytes, wanted at most 16384/],
    [{ hooks: { pre: 'a', timeoutMs: 999 } }, /Member timeoutMs is 999, .* from 1000 to 600000/],
    [{ hooks: { pre: 'a', timeoutMs: 600_001 } }, /Member timeoutMs is 600001/],
    [{ hooks: { pre: 'a', timeoutMs: 1000.5 } }, /Member timeoutMs is 1000.5/],
    [{ hooks: { pre: 'a', timeoutMs: '30s' } }, /Member timeoutMs is "30s"/],
    [{ container: Array.from({ length: 17 }, () => ({ sizeBytes: 1 })) }, /has 17 areas, wanted at most 16/],
  ];
  for (const [params, pattern] of wrong) {
    cases.push([JSON.stringify({ id: 9, command: 'backup', params: { ...BACKUP, ...params } }), 9, pattern]);
  }
  const wrongCopies: [object, RegExp][] = [
    [{ targets: [] }, /Member targets is \[\], wanted a list of 1 to 256/],
    [{ targets: '/copy.raw' }, /Member targets is "\/copy.raw"/],
    [{ targets: ['copy.raw'] }, /A member of targets is "copy.raw", wanted an absolute path or a URI/],
    [{ remap: 'plan.json' }, /Member remap is "plan.json", wanted an absolute path/],
    [{ snapshot: '' }, /Member snapshot is ""/],
    [{ rateBytesPerSecond: 0 }, /Member rateBytesPerSecond is 0/],
    [{ container: undefined }, /Member container is missing/],
  ];
  for (const [params, pattern] of wrongCopies) {
    cases.push([JSON.stringify({ id: 3, command: 'copy', params: { ...COPY, ...params } }), 3, pattern]);
  }
  for (const [line, id, pattern] of cases) {
    const answer = parseRequest(line);
    if (!('error' in answer)) return t.fail(`accepted ${line}`);
    t.equal(answer.id, id, line);
    t.equal(answer.error.code, 'bad-request');
    t.match(answer.error.message, pattern);
  }
  return t.end();
});

t.test('garbage is refused, never thrown', (t) => {
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.json()), (line) => {
      t.ok('error' in parseRequest(line), line);
      t.throws(() => parseReply(line), DaemonError);
    }),
    { numRuns: 100 },
  );
  t.end();
});

t.test('replies survive the wire', (t) => {
  const replies = [
    { id: 1, event: 'done', result: { a: [1, null, 'x'] } },
    { id: 1, event: 'session', session: 's' },
    { id: 1, event: 'warning', warning: 'w' },
    { id: 1, event: 'progress', progress: { tracksDone: 1 } },
    { id: null, event: 'error', error: { code: 'c', message: 'm' } },
  ] as const;
  for (const reply of replies) t.strictSame(parseReply(encodeLine(reply).toString()), reply);
  for (const bad of [
    { id: 1, event: 'x' },
    { id: 1, event: 'error' },
    { id: 1, event: 'session' },
    { id: 1, event: 'warning' },
    { event: 'done' },
  ]) {
    t.throws(() => parseReply(JSON.stringify(bad)), { code: 'bad-request' });
  }
  t.end();
});

t.test('errors keep their code and message across the wire, damage its place', (t) => {
  const operating = new DaemonError('cancelled', 'It was cancelled', { volume: 'v', session: 's' });
  const remote = fromWireError(toWireError(operating));
  t.type(remote, RemoteError);
  t.match(remote, { code: 'cancelled', message: 'It was cancelled' });

  const place = { where: 'set A', expected: 'x', tracks: [1, 2] };
  const line = encodeLine({
    id: 1,
    event: 'error',
    error: toWireError(new CorruptionError('Set A is damaged', place)),
  });
  const reply = parseReply(line.toString());
  if (reply.event !== 'error') return t.fail('no error');
  const damage = fromWireError(reply.error);
  if (!(damage instanceof CorruptionError)) return t.fail('no damage');
  t.strictSame(damage.place, place);

  t.equal(toWireError(new Error('x')).code, 'internal');
  t.equal(toWireError('thrown text').message, 'thrown text');
  return t.end();
});

t.test('requests about snapshots and groups are checked as well', (t) => {
  const good = [
    { id: 1, command: 'snapshot-create', params: { name: 'a', others: ['/v', '/w'] } },
    { id: 2, command: 'snapshot-list' },
    { id: 3, command: 'snapshot-delete', params: { name: 'a' } },
    { id: 4, command: 'snapshot-rollback', params: { name: 'a' } },
    { id: 5, command: 'snapshot-changes', params: { from: 'a', to: 'b', offsetBytes: 4096 } },
    { id: 6, command: 'snapshot-clone', params: { name: 'a', directory: '/w', home: '/w.raw' } },
    {
      id: 6,
      command: 'backup',
      params: { ...BACKUP, snapshot: 'a', others: [{ volume: '/w', snapshot: 'a' }] },
    },
  ] as const;
  for (const request of good) t.strictSame(parseRequest(encodeLine(request).toString().trimEnd()), request);
  const wrong: [string, object, RegExp][] = [
    ['snapshot-create', {}, /Member name is missing/],
    ['snapshot-clone', { name: 'a', directory: 'w' }, /Member directory is "w", wanted an absolute path/],
    ['snapshot-clone', { name: 'a', directory: '/w', home: 'h' }, /Member home is "h", wanted an absolute/],
    ['snapshot-create', { name: 'a', others: ['v'] }, /Member volume is "v", wanted an absolute path/],
    ['snapshot-create', { name: 'a', others: Array.from({ length: 64 }, () => '/v') }, /has 64 volumes/],
    ['snapshot-delete', {}, /Member name is missing/],
    ['snapshot-changes', { to: 'b' }, /Member from is missing/],
    ['snapshot-changes', { from: 'a', offsetBytes: -1 }, /Member offsetBytes is -1, wanted a whole number/],
    ['backup', { ...BACKUP, others: [{}] }, /Member volume is missing/],
    ['backup', { ...BACKUP, snapshot: '' }, /Member snapshot is ""/],
  ];
  for (const [command, params, pattern] of wrong) {
    const answer = parseRequest(JSON.stringify({ id: 9, command, params }));
    if (!('error' in answer)) return t.fail(`accepted ${JSON.stringify(params)}`);
    t.match(answer.error.message, pattern);
  }
  return t.end();
});
