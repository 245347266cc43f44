/**
 * Goal: the reader makes of a server's bytes what the server meant, however they are cut, and never crashes,
 * hangs or writes outside of a target whatever they are.
 *
 * Method: sessions of this room's own transmission in all three modes, cut anywhere and mutated; and replies
 * written by hand for what our server does not send: chunks out of order and between each other, several
 * errors, and each violation by name.
 */

import { deepStrictEqual, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { COMMAND } from './codec.ts';
import {
  CHUNK,
  type ChunkError,
  encodeBlockStatus,
  encodeChunkError,
  encodeHole,
  type ReplyMode,
  writeExtendedChunk,
  writeStructuredChunk,
} from './codec-chunks.ts';
import { type Pending, ReplyReader, type StatusById } from './reply-reader.ts';
import { contextOf, extended, request, settled, setUp, termsOf } from './test-transmission.ts';

interface Outcome {
  readonly resolved: Map<number, StatusById>;
  readonly refused: Map<number, ChunkError>;
  readonly violations: string[];
}

interface Reading extends Outcome {
  readonly reader: ReplyReader;
  readonly pending: Map<number, Pending>;
  /** Expects a reply under the next cookie, from 1 on. */
  readonly expect: (more: Partial<Pending>) => void;
}

function start(mode: ReplyMode): Reading {
  const pending = new Map<number, Pending>();
  const outcome: Outcome = { resolved: new Map(), refused: new Map(), violations: [] };
  const reader = new ReplyReader(mode, {
    find: (cookie) => pending.get(cookie),
    forget: (cookie) => void pending.delete(cookie),
    violate: (what) => void outcome.violations.push(what),
  });
  let next = 1;
  const expect = (more: Partial<Pending>): void => {
    const cookie = next;
    next += 1;
    pending.set(cookie, {
      name: `request ${cookie}`,
      offsetBytes: 0,
      target: undefined,
      contextIds: undefined,
      resolve: (statuses) => void outcome.resolved.set(cookie, statuses),
      refuse: (error) => void outcome.refused.set(cookie, error),
      ...more,
    });
  };
  return { ...outcome, reader, pending, expect };
}

/** What our transmission answers to a read, a status, a refused read and a write, over known bytes. */
async function session(mode: ReplyMode): Promise<Buffer> {
  const terms = termsOf(mode, contextOf('x-test:one', 1), contextOf('x-test:two', 2));
  const limits = { sparseReadBytesMin: 8192 };
  const { device, port, transmission } = setUp({ terms, limits, device: { extents: true } });
  device.bytes.fill(7, 2048, 4096);
  const send = mode === 'extended' ? extended : request;
  transmission.receive(
    Buffer.concat([
      send(COMMAND.read, 1, { lengthBytes: 8192 }),
      send(COMMAND.read, 2, { offsetBytes: 2048, lengthBytes: 1024 }),
      send(COMMAND.read, 3, { offsetBytes: 2 ** 20, lengthBytes: 512 }),
      send(COMMAND.trim, 4, { offsetBytes: 8192, lengthBytes: 512 }),
      ...(mode === 'simple' ? [] : [send(COMMAND.blockStatus, 5, { lengthBytes: 512 })]),
    ]),
  );
  await settled();
  return port.output;
}

function readingOf(mode: ReplyMode): Reading & { readonly targets: readonly Buffer[] } {
  const reading = start(mode);
  const targets = [8192, 1024, 512].map((lengthBytes) => Buffer.alloc(lengthBytes, 9));
  for (const [index, target] of targets.entries()) {
    reading.expect({ offsetBytes: [0, 2048, 2 ** 20][index] ?? 0, target });
  }
  reading.expect({ offsetBytes: 8192 });
  if (mode !== 'simple') reading.expect({ contextIds: new Set([1, 2]) });
  return { ...reading, targets };
}

function cut(bytes: Buffer, places: readonly number[]): Buffer[] {
  const ends = [0, ...places.map((place) => place % bytes.length), bytes.length].sort((a, b) => a - b);
  return ends.slice(1).map((end, index) => bytes.subarray(ends[index], end));
}

t.test('any chunking of a server stream gives the same answers', async () => {
  for (const mode of ['simple', 'structured', 'extended'] as const) {
    const stream = await session(mode);
    const check = (chunks: readonly Buffer[]): void => {
      const { reader, targets, resolved, refused, violations, pending } = readingOf(mode);
      for (const chunk of chunks) reader.receive(chunk);
      deepStrictEqual(violations, []);
      deepStrictEqual(pending.size, 0, 'everything is answered');
      const first = Buffer.alloc(8192).fill(7, 2048, 4096);
      ok(targets[0]?.equals(first) === true && targets[1]?.equals(Buffer.alloc(1024, 7)) === true);
      deepStrictEqual(refused.get(3)?.error, 22);
      if (mode !== 'simple') {
        deepStrictEqual(refused.get(3)?.offsetBytes, 2 ** 20);
        const extents = (flags: number): unknown => [{ lengthBytes: 512, flags }];
        deepStrictEqual(
          resolved.get(5),
          new Map([
            [1, extents(1)],
            [2, extents(2)],
          ]),
        );
      }
    };
    check([stream]);
    check(cut(stream, [...stream.keys()]));
    fc.assert(
      fc.property(fc.array(fc.nat(), { maxLength: 40 }), (places) => check(cut(stream, places))),
      { numRuns: 50 },
    );
  }
});

t.test('mutated server streams never crash and answer nothing twice', async () => {
  for (const mode of ['simple', 'structured', 'extended'] as const) {
    const stream = await session(mode);
    const change = fc.tuple(fc.nat(stream.length - 1), fc.nat(255));
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 6 }), fc.array(fc.nat()), (changes, places) => {
        const { reader, violations, resolved, refused } = readingOf(mode);
        const bytes = Buffer.from(stream);
        for (const [at, value] of changes) bytes[at] = value;
        for (const chunk of cut(bytes, places)) reader.receive(chunk);
        ok(violations.length <= 1);
        ok(resolved.size + refused.size <= 5);
        for (const cookie of resolved.keys()) ok(!refused.has(cookie));
      }),
      { numRuns: 500 },
    );
  }
});

const { none, offsetData, offsetHole, blockStatus, error, errorOffset } = CHUNK;

function chunk(cookieLow: number, type: number, payload: Buffer = Buffer.alloc(0), flags = 1): Buffer {
  const header = Buffer.alloc(20);
  const to = { cookieHigh: 0, cookieLow, offsetHigh: 0, offsetLow: 0 };
  writeStructuredChunk(header, 0, { flags, type }, to, payload.length);
  return Buffer.concat([header, payload]);
}

function data(offsetBytes: number, bytes: Buffer): Buffer {
  const at = Buffer.alloc(8);
  at.writeBigUInt64BE(BigInt(offsetBytes), 0);
  return Buffer.concat([at, bytes]);
}

function statusOf(contextId: number): Buffer {
  return encodeBlockStatus({ contextId, extents: [{ lengthBytes: 512, flags: 0 }] });
}

t.test('chunks may come in any order and between those of others', (t) => {
  const { reader, expect, resolved, refused, violations } = start('structured');
  const targets = [Buffer.alloc(16, 9), Buffer.alloc(8, 9)];
  for (const target of targets) expect({ offsetBytes: 512, target });
  reader.receive(
    Buffer.concat([
      chunk(1, offsetData, data(524, Buffer.from('ffff')), 0),
      chunk(2, offsetData, data(516, Buffer.from('bbbb')), 0),
      chunk(1, offsetHole, encodeHole({ offsetBytes: 516, lengthBytes: 8 }), 0),
      chunk(2, offsetData, data(512, Buffer.from('aaaa'))),
      chunk(1, offsetData, data(512, Buffer.from('cccc')), 0),
      chunk(1, none),
    ]),
  );
  t.equal(targets[0]?.toString('latin1'), 'cccc\0\0\0\0\0\0\0\0ffff');
  t.equal(targets[1]?.toString(), 'aaaabbbb');
  t.same([...resolved.keys()], [2, 1]);
  t.equal(refused.size, 0);
  t.same(violations, []);
  t.end();
});

t.test('the first error counts, with its message and place; unknown errors are errors', (t) => {
  const { reader, expect, refused, violations } = start('structured');
  for (let cookie = 1; cookie <= 3; cookie += 1) expect({ offsetBytes: 512, target: Buffer.alloc(8) });
  const failed = encodeChunkError({ error: 5, message: 'bad sector', offsetBytes: 516 });
  const later = encodeChunkError({ error: 12, message: 'later', offsetBytes: undefined });
  reader.receive(
    Buffer.concat([
      chunk(1, offsetData, data(512, Buffer.from('aaaa')), 0),
      chunk(1, errorOffset, failed, 0),
      chunk(1, error, later),
      chunk(2, 0x8007, Buffer.concat([later, Buffer.alloc(20)])),
      chunk(3, error, later, 0),
      chunk(3, none),
    ]),
  );
  t.same(refused.get(1), { error: 5, message: 'bad sector', offsetBytes: 516 });
  t.match(refused.get(2), { error: 12, message: 'later' });
  t.match(refused.get(3), { error: 12 });
  t.same(violations, []);
  t.end();
});

t.test('what a server must not send ends the session', (t) => {
  const bytes = Buffer.from('aaaa');
  const simple = (cookie: number, value: number): Buffer =>
    Buffer.from(
      `67446698${value.toString(16).padStart(8, '0')}${cookie.toString(16).padStart(16, '0')}`,
      'hex',
    );
  const first = chunk(1, offsetData, data(512, bytes), 0);
  const cases: [string, Buffer[]][] = [
    ['a wrong magic', [Buffer.alloc(20, 'x')]],
    ['an unknown cookie', [chunk(9, none)]],
    ['an unknown type', [chunk(1, 77)]],
    ['a simple reply to a read', [simple(1, 0)]],
    ['a simple success of a status', [simple(2, 0)]],
    ['NONE that is not the last', [chunk(1, none, undefined, 0)]],
    ['NONE with a payload', [chunk(1, none, bytes)]],
    ['data without bytes', [chunk(1, offsetData, data(512, Buffer.alloc(0)))]],
    ['data before the request', [chunk(1, offsetData, data(508, bytes))]],
    ['data behind the request', [chunk(1, offsetData, data(518, bytes))]],
    ['more data than asked for', [chunk(1, offsetData, data(512, Buffer.alloc(9)))]],
    ['data for a status', [chunk(2, offsetData, data(0, bytes))]],
    ['data twice', [first, first]],
    ['data that overlaps', [first, chunk(1, offsetHole, encodeHole({ offsetBytes: 514, lengthBytes: 6 }))]],
    ['data missing', [chunk(1, offsetData, data(512, bytes))]],
    ['no data', [chunk(1, none)]],
    ['an empty hole', [chunk(1, offsetHole, encodeHole({ offsetBytes: 512, lengthBytes: 0 }))]],
    ['a hole of the wrong length', [chunk(1, offsetHole, Buffer.alloc(11))]],
    ['a status for a read', [chunk(1, blockStatus, statusOf(1))]],
    ['a status of another context', [chunk(2, blockStatus, statusOf(3), 0)]],
    ['a status twice', [chunk(2, blockStatus, statusOf(1), 0), chunk(2, blockStatus, statusOf(1))]],
    ['a status missing', [chunk(2, blockStatus, statusOf(1))]],
    ['a status without extents', [chunk(2, blockStatus, Buffer.alloc(4))]],
    ['an extended status', [chunk(2, CHUNK.blockStatusExtended, Buffer.alloc(24))]],
    ['an error with too long a message', [chunk(1, error, Buffer.from('00000005000961', 'hex'))]],
    ['an endless error', [chunk(1, error, Buffer.alloc(10_000))]],
  ];
  for (const [name, replies] of cases) {
    const { reader, expect, resolved, refused, violations } = start('structured');
    expect({ offsetBytes: 512, target: Buffer.alloc(8) });
    expect({ contextIds: new Set([1, 2]) });
    for (const reply of replies) reader.receive(reply);
    reader.receive(chunk(1, error, encodeChunkError({ error: 5, message: '', offsetBytes: undefined })));
    t.equal(violations.length, 1, name);
    t.equal(resolved.size + refused.size, 0, `${name}: nothing is answered, then or later`);
  }
  const { reader, expect, violations } = start('extended');
  expect({ offsetBytes: 512 });
  const elsewhere = Buffer.alloc(32);
  writeExtendedChunk(
    elsewhere,
    0,
    { flags: 1, type: none },
    { cookieHigh: 0, cookieLow: 1, offsetHigh: 0, offsetLow: 0 },
    0,
  );
  reader.receive(elsewhere);
  t.match(violations, ['request 1 was answered with a reply at 0']);
  const compact = start('extended');
  compact.expect({});
  compact.reader.receive(Buffer.concat([simple(1, 0), Buffer.alloc(16)]));
  t.equal(compact.violations.length, 1, 'a simple reply after extended headers');
  t.end();
});
