/**
 * Goal: the handshake answers every client as the protocol says, ends, and never throws.
 * Method: the machine alone, fed with bytes: golden dialogues, each refusal by name, any chunking of a
 * dialogue, and mutated or arbitrary bytes.
 */

import { deepStrictEqual, strictEqual as equal } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import {
  encodeClientFlags,
  encodeInfoRequest,
  encodeOption,
  INFO,
  OPTION,
  OPTION_REPLY,
  TRANSMISSION_FLAG,
} from './codec.ts';
import { encodeMetaContextRequest } from './codec-meta.ts';
import {
  type ExportOffer,
  type HandshakeDecision,
  type HandshakeView,
  ServerHandshake,
} from './handshake.ts';
import { nbdLimits } from './limits.ts';
import type { ContextCatalog, MetaContext } from './meta-context.ts';

/** Contexts by name, and one that is found but not listed. */
function catalogOf(...names: readonly string[]): ContextCatalog {
  const contextOf = (name: string): MetaContext => ({
    name,
    extents: (_, lengthBytes) => Promise.resolve([{ lengthBytes, flags: 0 }]),
  });
  const listed = names.map(contextOf);
  const hidden = contextOf('x-test:hidden');
  return {
    list: () => listed,
    find: (name) => (name === hidden.name ? hidden : undefined),
  };
}

const disk: ExportOffer = {
  name: 'disk',
  description: 'a disk',
  sizeBytes: 1024 * 1024,
  transmissionFlags: 0x16d,
  minimumBlockSizeBytes: 512,
  preferredBlockSizeBytes: 4096,
  maximumPayloadBytes: 2 ** 25,
  contexts: catalogOf('base:allocation', 'x-test:one', 'x-test:two'),
};
const offers = [disk, { ...disk, name: 'other', description: '' }];
const view: HandshakeView = {
  list: () => offers,
  find: (name) => offers.find((offer) => offer.name === name),
  isClosing: () => false,
};
const none = Buffer.alloc(0);

interface Session {
  readonly output: Buffer;
  readonly decision: HandshakeDecision;
}

function run(chunks: readonly Buffer[], seen: HandshakeView = view, limits = nbdLimits()): Session {
  const handshake = new ServerHandshake(seen, limits);
  const output: Buffer[] = [];
  for (const [index, chunk] of chunks.entries()) {
    const step = handshake.receive(chunk);
    output.push(step.output);
    if (step.decision.kind === 'continue') continue;
    const late = chunks.slice(index + 1);
    const decision =
      step.decision.kind === 'transmission'
        ? { ...step.decision, rest: Buffer.concat([step.decision.rest, ...late]) }
        : step.decision;
    return { output: Buffer.concat(output), decision };
  }
  return { output: Buffer.concat(output), decision: { kind: 'continue' } };
}

function go(name: string, infos: readonly number[] = [], option: number = OPTION.go): Buffer {
  return encodeOption(option, encodeInfoRequest({ name: Buffer.from(name), infos }));
}

/** The reply types of a dialogue, in order. */
function replyTypes(output: Buffer): number[] {
  const types: number[] = [];
  for (let at = 0; at < output.length; at += 20 + output.readUInt32BE(at + 16)) {
    types.push(output.readUInt32BE(at + 12));
  }
  return types;
}

function contexts(option: number, exportName: string, ...queries: readonly string[]): Buffer {
  return encodeOption(option, encodeMetaContextRequest({ exportName, queries }));
}

const fixed = encodeClientFlags(3);
const some = Buffer.from('x');
const structured = encodeOption(OPTION.structuredReply, none);
const extended = encodeOption(OPTION.extendedHeaders, none);

t.test('golden dialogue: GO with all information', (t) => {
  const handshake = new ServerHandshake(view, nbdLimits());
  t.equal(handshake.greeting().toString('hex'), '4e42444d4147494349484156454f50540003');
  const wanted = [INFO.name, INFO.description, INFO.blockSize, 77];
  const session = run([fixed, go('disk', wanted), Buffer.from('behind')]);
  const reply = '0003e889045565a900000007';
  t.equal(
    session.output.toString('hex'),
    [
      `${reply}000000030000000c00000000000000100000016d`,
      `${reply}00000003000000060001${Buffer.from('disk').toString('hex')}`,
      `${reply}00000003000000080002${Buffer.from('a disk').toString('hex')}`,
      `${reply}000000030000000e0003000002000000100002000000`,
      `${reply}0000000100000000`,
    ].join(''),
  );
  t.same(session.decision, {
    kind: 'transmission',
    negotiated: { exportName: 'disk', replies: 'simple', contexts: [] },
    rest: Buffer.from('behind'),
  });
  t.end();
});

t.test('golden dialogue: EXPORT_NAME with and without zeroes', (t) => {
  const option = encodeOption(OPTION.exportName, Buffer.from('disk'));
  const basics = '0000000000100000016d';
  const without = run([fixed, option]);
  t.equal(without.output.toString('hex'), basics);
  const zeroes = run([encodeClientFlags(1), option]);
  t.equal(zeroes.output.toString('hex'), basics + '00'.repeat(124));
  t.equal(run([encodeClientFlags(0), option]).decision.kind, 'transmission', 'not fixed: the only option');
  t.match(run([fixed, encodeOption(OPTION.exportName, Buffer.from('x'))]), {
    output: none,
    decision: { kind: 'close', reason: 'Export "x" does not exist' },
  });
  t.end();
});

t.test('LIST, INFO, ABORT', (t) => {
  const session = run([
    fixed,
    encodeOption(OPTION.list, none),
    go('other', [], OPTION.info),
    encodeOption(OPTION.abort, none),
  ]);
  const { ack, server, info } = OPTION_REPLY;
  t.same(replyTypes(session.output), [server, server, ack, info, info, ack, ack]);
  t.match(session.decision, { kind: 'close' });
  t.end();
});

t.test('what is not known or malformed is refused, and the session goes on', (t) => {
  const cases: [string, Buffer, number][] = [
    ['TLS', encodeOption(OPTION.startTls, none), OPTION_REPLY.errorPolicy],
    ['structured replies with data', encodeOption(OPTION.structuredReply, some), OPTION_REPLY.errorInvalid],
    ['extended headers with data', encodeOption(OPTION.extendedHeaders, some), OPTION_REPLY.errorInvalid],
    ['contexts before chunks', contexts(OPTION.setMetaContext, 'disk'), OPTION_REPLY.errorInvalid],
    ['a list of contexts before chunks', contexts(OPTION.listMetaContext, 'disk'), OPTION_REPLY.errorInvalid],
    ['an unknown option', encodeOption(0xffff_ffff, Buffer.alloc(100)), OPTION_REPLY.errorUnsupported],
    ['a list with data', encodeOption(OPTION.list, Buffer.alloc(1)), OPTION_REPLY.errorInvalid],
    ['an unknown export', go('nothing'), OPTION_REPLY.errorUnknown],
    ['a malformed GO', encodeOption(OPTION.go, Buffer.alloc(5)), OPTION_REPLY.errorInvalid],
    [
      'a name that is no text',
      encodeOption(OPTION.go, encodeInfoRequest({ name: Buffer.from([0xff]), infos: [] })),
      OPTION_REPLY.errorInvalid,
    ],
    ['a long name', go('n'.repeat(4097)), OPTION_REPLY.errorTooBig],
    ['much data', encodeOption(OPTION.list, Buffer.alloc(65_537)), OPTION_REPLY.errorTooBig],
  ];
  for (const [name, option, type] of cases) {
    const session = run([fixed, option, go('disk')]);
    t.equal(replyTypes(session.output)[0], type, name);
    t.equal(session.decision.kind, 'transmission', `${name}, then GO`);
  }
  t.end();
});

t.test('what leaves no common ground ends the session', (t) => {
  const cases: [string, Buffer[]][] = [
    ['unknown client flags', [encodeClientFlags(7)]],
    ['a wrong option magic', [fixed, Buffer.alloc(16)]],
    ['an option before fixed newstyle', [encodeClientFlags(0), encodeOption(OPTION.list, none)]],
    ['an oversize export name', [fixed, encodeOption(OPTION.exportName, Buffer.alloc(70_000))]],
    ['a long export name', [fixed, encodeOption(OPTION.exportName, Buffer.alloc(5000, 'a'))]],
    ['endless options', [fixed, ...Array.from({ length: 65 }, () => encodeOption(OPTION.list, none))]],
  ];
  for (const [name, chunks] of cases) t.equal(run(chunks).decision.kind, 'close', name);
  t.end();
});

/** The mode and the names of the contexts of a session that began. */
function agreed(session: Session): unknown {
  if (session.decision.kind !== 'transmission') return session.decision;
  const { replies, contexts: selected } = session.decision.negotiated;
  return [replies, ...selected.map(({ id, context }) => `${id} ${context.name}`)];
}

/** The transmission flags in the first NBD_INFO_EXPORT of a reply to GO. */
function flagsOf(output: Buffer): number {
  for (let at = 0; at < output.length; at += 20 + output.readUInt32BE(at + 16)) {
    if (output.readUInt32BE(at + 12) === OPTION_REPLY.info) return output.readUInt16BE(at + 30);
  }
  return 0;
}

t.test('structured replies and extended headers, in any order, and what they add to the flags', (t) => {
  const { ack, errorExtendedHeadersRequired: required } = OPTION_REPLY;
  const flags = disk.transmissionFlags;
  const { sendDf, blockStatusPayload } = TRANSMISSION_FLAG;
  const choose = contexts(OPTION.setMetaContext, 'disk', 'base:allocation');
  const one = '1 base:allocation';
  const cases: [string, Buffer[], number[], unknown, number][] = [
    ['neither', [], [], ['simple'], flags],
    ['structured', [structured], [ack], ['structured'], flags | sendDf],
    ['structured twice', [structured, structured], [ack, ack], ['structured'], flags | sendDf],
    ['extended', [extended], [ack], ['extended'], flags | sendDf],
    ['structured, extended', [structured, extended], [ack, ack], ['extended'], flags | sendDf],
    ['extended, structured', [extended, structured], [ack, required], ['extended'], flags | sendDf],
    ['structured, contexts', [structured, choose], [ack, 4, ack], ['structured', one], flags | sendDf],
    [
      'contexts before extended',
      [structured, choose, extended],
      [ack, 4, ack, ack],
      ['extended', one],
      flags | sendDf | blockStatusPayload,
    ],
  ];
  for (const [name, options, replies, expected, expectedFlags] of cases) {
    const session = run([fixed, ...options, go('disk')]);
    t.same(replyTypes(session.output).slice(0, replies.length), replies, name);
    t.same(agreed(session), expected, `${name}: agreed on`);
    t.equal(flagsOf(session.output), expectedFlags, `${name}: flags`);
    const byName = run([fixed, ...options, encodeOption(OPTION.exportName, Buffer.from('disk'))]);
    if (options.includes(extended)) t.match(byName.decision, { kind: 'close' }, `${name}: no EXPORT_NAME`);
    else t.equal(byName.output.readUInt16BE(byName.output.length - 2), expectedFlags, `${name}: EXPORT_NAME`);
  }
  t.end();
});

t.test('contexts are listed and chosen by name, and only for the export they were chosen for', (t) => {
  const { ack, metaContext, errorInvalid, errorTooBig, errorUnknown } = OPTION_REPLY;
  const choose = (...queries: string[]): Buffer => contexts(OPTION.setMetaContext, 'disk', ...queries);
  const list = (...queries: string[]): Buffer => contexts(OPTION.listMetaContext, 'disk', ...queries);
  const lists: [string, Buffer, number[]][] = [
    ['all', list(), [metaContext, metaContext, metaContext, ack]],
    ['a namespace', list('x-test:'), [metaContext, metaContext, ack]],
    ['base', list('base:'), [metaContext, ack]],
    ['one twice', list('base:', 'base:allocation'), [metaContext, ack]],
    ['not listed, by its name', list('x-test:hidden'), [metaContext, ack]],
    ['unknown', list('other:', 'base:nothing'), [ack]],
    ['no namespace', list('allocation'), [errorInvalid]],
    ['an empty namespace', list(':x'), [errorInvalid]],
    ['no such export', contexts(OPTION.listMetaContext, 'nothing'), [errorUnknown]],
    ['too many', list(...Array.from({ length: 65 }, (_, index) => `x:${index}`)), [errorTooBig]],
    ['malformed', encodeOption(OPTION.listMetaContext, Buffer.alloc(9)), [errorInvalid]],
  ];
  for (const [name, option, replies] of lists) {
    t.same(replyTypes(run([fixed, structured, option]).output).slice(1), replies, name);
  }
  const choices: [string, Buffer[], string[]][] = [
    ['two', [choose('x-test:two', 'base:allocation')], ['1 x-test:two', '2 base:allocation']],
    ['one twice', [choose('base:allocation', 'base:allocation')], ['1 base:allocation']],
    ['not listed', [choose('x-test:hidden', 'x-test:nothing')], ['1 x-test:hidden']],
    ['a wildcard selects nothing', [choose('base:', 'x-test:')], []],
    ['nothing', [choose()], []],
    ['the last choice counts', [choose('x-test:one'), choose('x-test:two')], ['1 x-test:two']],
    ['a failed one too', [choose('x-test:one'), choose('two')], []],
    ['a list changes nothing', [choose('x-test:one'), list()], ['1 x-test:one']],
    ['another export', [contexts(OPTION.setMetaContext, 'other', 'base:allocation')], []],
  ];
  for (const [name, options, expected] of choices) {
    t.same(agreed(run([fixed, structured, ...options, go('disk')])), ['structured', ...expected], name);
  }
  t.end();
});

t.test('golden dialogue: contexts', (t) => {
  const option = contexts(OPTION.setMetaContext, 'disk', 'x-test:one');
  t.equal(
    option.toString('hex'),
    '49484156454f50540000000a0000001a000000046469736b000000010000000a782d746573743a6f6e65',
  );
  t.equal(
    run([fixed, structured, option]).output.toString('hex'),
    [
      '0003e889045565a9000000080000000100000000',
      '0003e889045565a90000000a000000040000000e00000001782d746573743a6f6e65',
      '0003e889045565a90000000a0000000100000000',
    ].join(''),
  );
  t.end();
});

t.test('a closing server refuses options but takes ABORT', (t) => {
  const closing = { ...view, isClosing: () => true };
  const session = run([fixed, go('disk'), encodeOption(OPTION.abort, none)], closing);
  t.same(replyTypes(session.output), [OPTION_REPLY.errorShutdown, OPTION_REPLY.ack]);
  t.equal(run([fixed, encodeOption(OPTION.exportName, Buffer.from('disk'))], closing).decision.kind, 'close');
  t.end();
});

const dialogue = Buffer.concat([
  fixed,
  structured,
  contexts(OPTION.listMetaContext, 'disk', 'x-test:', 'base:allocation'),
  contexts(OPTION.setMetaContext, 'disk', 'x-test:one', 'base:allocation'),
  extended,
  encodeOption(OPTION.list, none),
  encodeOption(99, Buffer.alloc(50, 1)),
  encodeOption(OPTION.list, Buffer.alloc(600)),
  go('other', [INFO.blockSize], OPTION.info),
  go('disk', [INFO.name]),
  Buffer.from('the first request'),
]);

/** Cuts bytes at the given places. */
function cut(bytes: Buffer, places: readonly number[]): Buffer[] {
  const sorted = [0, ...places.map((place) => place % bytes.length), bytes.length].sort((a, b) => a - b);
  return sorted.slice(1).map((end, index) => bytes.subarray(sorted[index], end));
}

t.test('any chunking of a dialogue gives the same answers', (t) => {
  const limits = nbdLimits({ optionBytesMax: 500 });
  const whole = run([dialogue], view, limits);
  t.equal(whole.decision.kind, 'transmission');
  fc.assert(
    fc.property(fc.array(fc.nat(), { maxLength: 60 }), (places) => {
      deepStrictEqual(run(cut(dialogue, places), view, limits), whole);
    }),
  );
  const single = Array.from(dialogue, (byte) => Buffer.of(byte));
  t.same(run(single, view, limits), whole, 'byte by byte');
  t.end();
});

t.test('mutated and arbitrary bytes never throw, and truncated ones only wait', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(dialogue.length - 1), fc.nat(255)), { minLength: 1, maxLength: 8 }),
      (changes) => {
        const mutated = Buffer.from(dialogue);
        for (const [at, value] of changes) mutated[at] = value;
        run(cut(mutated, [40, 100]));
      },
    ),
    { numRuns: 1000 },
  );
  fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => void run([fixed, Buffer.from(bytes)])));
  const end = dialogue.length - 'the first request'.length;
  for (let length = 0; length < end; length += 1) {
    const { decision } = run([dialogue.subarray(0, length)]);
    equal(decision.kind, 'continue', `${length} bytes were taken for a whole dialogue`);
  }
  t.end();
});
