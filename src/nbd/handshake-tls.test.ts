/**
 * Goal: both sides of the handshake treat TLS as NBD proto.md § TLS support says, whatever the policy, and
 * take nothing that came in the clear for encrypted.
 * Method: the two machines alone, fed with bytes; TLS itself is a call of `secured`.
 */

import fc from 'fast-check';
import t from 'tap';
import { ClientHandshake } from './client-handshake.ts';
import {
  encodeClientFlags,
  encodeGreeting,
  encodeInfoRequest,
  encodeOption,
  encodeOptionReply,
  OPTION,
  OPTION_REPLY,
} from './codec.ts';
import { encodeMetaContextRequest } from './codec-meta.ts';
import { type ExportOffer, type HandshakeView, ServerHandshake, type TlsPolicy } from './handshake.ts';
import { nbdLimits } from './limits.ts';
import type { MetaContext } from './meta-context.ts';

const allocation: MetaContext = {
  name: 'base:allocation',
  extents: (_, lengthBytes) => Promise.resolve([{ lengthBytes, flags: 0 }]),
};
const disk: ExportOffer = {
  name: 'disk',
  description: '',
  sizeBytes: 1024 * 1024,
  transmissionFlags: 1,
  minimumBlockSizeBytes: 512,
  preferredBlockSizeBytes: 4096,
  maximumPayloadBytes: 2 ** 25,
  contexts: { list: () => [allocation], find: () => undefined },
};
const none = Buffer.alloc(0);
const fixed = encodeClientFlags(3);
const startTls = encodeOption(OPTION.startTls, none);
const structured = encodeOption(OPTION.structuredReply, none);
const request = encodeInfoRequest({ name: Buffer.from('disk'), infos: [] });
const contexts = encodeMetaContextRequest({ exportName: 'disk', queries: ['base:allocation'] });

function machine(policy: TlsPolicy, isClosing = false): ServerHandshake {
  const view: HandshakeView = {
    list: () => [disk],
    find: (name) => (name === 'disk' ? disk : undefined),
    isClosing: () => isClosing,
  };
  return new ServerHandshake(view, nbdLimits(), policy);
}

/** The reply types of a dialogue, in order. */
function replyTypes(output: Buffer): number[] {
  const types: number[] = [];
  for (let at = 0; at < output.length; at += 20 + output.readUInt32BE(at + 16)) {
    types.push(output.readUInt32BE(at + 12));
  }
  return types;
}

t.test('before required TLS every option but STARTTLS and ABORT is refused', (t) => {
  const refused: [string, Buffer][] = [
    ['LIST', encodeOption(OPTION.list, none)],
    ['INFO', encodeOption(OPTION.info, request)],
    ['GO', encodeOption(OPTION.go, request)],
    ['GO of nothing', encodeOption(OPTION.go, encodeInfoRequest({ name: Buffer.from('x'), infos: [] }))],
    ['a malformed GO', encodeOption(OPTION.go, none)],
    ['STRUCTURED_REPLY', structured],
    ['SET_META_CONTEXT', encodeOption(OPTION.setMetaContext, contexts)],
    ['an unknown option', encodeOption(4711, none)],
    ['an oversize option', encodeOption(4711, Buffer.alloc(nbdLimits().optionBytesMax + 1))],
  ];
  for (const [name, option] of refused) {
    for (const isClosing of [false, true]) {
      const handshake = machine('required', isClosing);
      const { output, decision } = handshake.receive(Buffer.concat([fixed, option]));
      t.same(replyTypes(output), [OPTION_REPLY.errorTlsRequired], name);
      t.equal(decision.kind, 'continue', name);
    }
  }
  const closing = machine('required', true).receive(Buffer.concat([fixed, startTls]));
  t.same(replyTypes(closing.output), [OPTION_REPLY.errorShutdown]);
  const abort = machine('required').receive(Buffer.concat([fixed, encodeOption(OPTION.abort, none)]));
  t.same(replyTypes(abort.output), [OPTION_REPLY.ack]);
  t.equal(abort.decision.kind, 'close');
  t.end();
});

t.test('a client that cannot be told about required TLS is hung up on', (t) => {
  const named = encodeOption(OPTION.exportName, Buffer.from('disk'));
  const byName = machine('required').receive(Buffer.concat([fixed, named]));
  t.match(byName, { output: none, decision: { kind: 'close', reason: /named before TLS/ } });
  const old = machine('required').receive(encodeClientFlags(2));
  t.match(old, { output: none, decision: { kind: 'close', reason: /without fixed newstyle/ } });
  t.equal(machine('optional').receive(encodeClientFlags(2)).decision.kind, 'continue');
  const notFixed = machine('optional').receive(Buffer.concat([encodeClientFlags(2), startTls]));
  t.match(notFixed, { output: none, decision: { kind: 'close', reason: /without fixed newstyle/ } });
  t.end();
});

t.test('without TLS its option is refused, and nothing is said to need it', (t) => {
  const handshake = machine('off');
  const { output, decision } = handshake.receive(
    Buffer.concat([fixed, startTls, encodeOption(OPTION.go, request)]),
  );
  t.same(replyTypes(output), [OPTION_REPLY.errorPolicy, OPTION_REPLY.info, OPTION_REPLY.info, 1]);
  t.equal(decision.kind, 'transmission');
  t.end();
});

t.test('optional TLS may be left out', (t) => {
  const { decision } = machine('optional').receive(Buffer.concat([fixed, encodeOption(OPTION.go, request)]));
  t.equal(decision.kind, 'transmission');
  t.end();
});

for (const policy of ['optional', 'required'] as const) {
  t.test(`STARTTLS where TLS is ${policy}`, (t) => {
    const handshake = machine(policy);
    const first = handshake.receive(Buffer.concat([fixed, startTls]));
    t.same(replyTypes(first.output), [OPTION_REPLY.ack]);
    t.equal(first.decision.kind, 'start-tls');
    t.equal(handshake.receive(startTls).output.length, 0, 'nothing is taken before TLS is up');

    const secured = machine(policy);
    secured.receive(Buffer.concat([fixed, startTls]));
    secured.secured();
    const again = secured.receive(startTls);
    t.same(replyTypes(again.output), [OPTION_REPLY.errorInvalid], 'twice');
    t.equal(again.decision.kind, 'continue');
    t.throws(() => secured.secured(), /TLS was not agreed on/);
    const unknown = encodeOption(OPTION.go, encodeInfoRequest({ name: Buffer.from('x'), infos: [] }));
    t.same(replyTypes(secured.receive(unknown).output), [OPTION_REPLY.errorUnknown]);
    t.equal(secured.receive(encodeOption(OPTION.go, request)).decision.kind, 'transmission');
    t.end();
  });
}

t.test('STARTTLS with data is invalid and may be sent again', (t) => {
  const handshake = machine('required');
  const { output } = handshake.receive(
    Buffer.concat([fixed, encodeOption(OPTION.startTls, Buffer.from('x'))]),
  );
  t.same(replyTypes(output), [OPTION_REPLY.errorInvalid]);
  t.equal(handshake.receive(startTls).decision.kind, 'start-tls');
  t.end();
});

t.test('what was agreed on before TLS is forgotten', (t) => {
  const chosen = encodeOption(OPTION.setMetaContext, contexts);
  const go = encodeOption(OPTION.go, request);
  const plain = machine('optional').receive(Buffer.concat([fixed, structured, chosen, go]));
  t.match(plain.decision, { negotiated: { replies: 'structured', contexts: { length: 1 } } });
  const handshake = machine('optional');
  handshake.receive(Buffer.concat([fixed, structured, chosen]));
  t.equal(handshake.receive(startTls).decision.kind, 'start-tls');
  handshake.secured();
  const { decision } = handshake.receive(go);
  t.match(decision, { kind: 'transmission', negotiated: { replies: 'simple', contexts: { length: 0 } } });
  t.end();
});

t.test('plain text behind STARTTLS ends the session, and none of it is answered', (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom<TlsPolicy>('optional', 'required'),
      fc.oneof(
        fc.constant(encodeOption(OPTION.go, request)),
        fc.uint8Array({ minLength: 1, maxLength: 80 }).map((bytes) => Buffer.from(bytes)),
      ),
      (policy, injected) => {
        const { output, decision } = machine(policy).receive(Buffer.concat([fixed, startTls, injected]));
        return output.length === 0 && decision.kind === 'close' && /plain text/.test(decision.reason);
      },
    ),
    { verbose: true },
  );
  t.end();
});

// ---------------------------------------------------------------------------------------------------

const greeting = encodeGreeting(3);
const goal = { kind: 'go', exportName: 'disk' } as const;
const wishes = { tls: true, structuredReplies: true, extendedHeaders: true, contexts: ['base:allocation'] };
const consent = encodeOptionReply(OPTION.startTls, OPTION_REPLY.ack, none);

t.test('a client with TLS asks for it first, and for the rest inside', (t) => {
  const client = new ClientHandshake(goal, wishes);
  const first = client.receive(greeting);
  t.equal(first.output.toString('hex'), Buffer.concat([fixed, startTls]).toString('hex'));
  t.equal(client.receive(consent).decision.kind, 'start-tls');
  t.equal(client.secured().readUInt32BE(8), OPTION.extendedHeaders);
  const list = new ClientHandshake({ kind: 'list' }, { tls: true });
  t.ok(list.receive(greeting).output.equals(Buffer.concat([fixed, startTls])));
  list.receive(consent);
  t.equal(list.secured().readUInt32BE(8), OPTION.list);
  t.end();
});

t.test('a client with TLS never goes on without it', (t) => {
  const { errorUnsupported, errorPolicy, errorShutdown, errorTlsRequired } = OPTION_REPLY;
  for (const type of [errorUnsupported, errorPolicy, errorShutdown, errorTlsRequired]) {
    const client = new ClientHandshake(goal, wishes);
    client.receive(greeting);
    const { output, decision } = client.receive(
      encodeOptionReply(OPTION.startTls, type, Buffer.from('not here')),
    );
    t.same(decision, { kind: 'tls-refused', reason: 'not here' });
    t.ok(output.equals(encodeOption(OPTION.abort, none)), 'nothing but a goodbye is sent');
  }
  const old = new ClientHandshake(goal, wishes).receive(encodeGreeting(2));
  t.same(old.decision, { kind: 'tls-refused', reason: 'it is too old for TLS' });
  t.end();
});

t.test('a client takes nothing that came in the clear with the consent', (t) => {
  const client = new ClientHandshake(goal, wishes);
  client.receive(greeting);
  const injected = encodeOptionReply(OPTION.extendedHeaders, OPTION_REPLY.ack, none);
  const { decision } = client.receive(Buffer.concat([consent, injected]));
  t.match(decision, { kind: 'violation', reason: /plain text/ });
  t.end();
});
