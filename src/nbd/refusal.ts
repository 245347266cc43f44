/**
 * Which requests never reach the device, and what they are answered.
 *
 * Pure: a request and the rules of its connection go in, a failure or nothing comes out. Whether a refused
 * request has a payload to be skipped is the transmission's affair.
 *
 * Source: NBD proto.md § Command flags, § Request types, § Error values; of the branch `extension-ext-header`
 * NBD_CMD_FLAG_PAYLOAD_LEN; of the branch `extension-resize` NBD_CMD_RESIZE.
 */

import type { BlockDevice } from '../device/index.ts';
import { COMMAND, COMMAND_FLAG, NBD_ERROR, type Request } from './codec.ts';
import type { ReplyMode } from './codec-chunks.ts';
import type { Failure } from './reply-writer.ts';

/** What a connection may ask of its export. */
export interface RequestRules {
  readonly device: BlockDevice;
  readonly readOnly: boolean;
  readonly fastZeroes: boolean;
  readonly payloadBytesMax: number;
  readonly mode: ReplyMode;
  /** Metadata contexts that were agreed on. */
  readonly contextCount: number;
  /** By command: the flags it may carry; none for commands that are not known. */
  readonly allowedFlags: readonly (number | undefined)[];
}

/**
 * The flags of each command. FUA is allowed on every command. A payload is allowed where the command has one;
 * that a write must have it is checked apart.
 */
export function allowedFlagsOf(
  mode: ReplyMode,
  may: { readonly blockStatus: boolean; readonly resize: boolean },
): readonly (number | undefined)[] {
  const { fua, noHole, df, requestOne, fastZero, payloadLength } = COMMAND_FLAG;
  const payload = mode === 'extended' ? payloadLength : 0;
  const flags: (number | undefined)[] = [];
  flags[COMMAND.read] = fua | (mode === 'simple' ? 0 : df);
  flags[COMMAND.write] = fua | payload;
  flags[COMMAND.flush] = fua;
  flags[COMMAND.trim] = fua;
  flags[COMMAND.cache] = fua;
  flags[COMMAND.writeZeroes] = fua | noHole | fastZero;
  if (may.blockStatus) flags[COMMAND.blockStatus] = fua | requestOne | payload;
  if (may.resize) flags[COMMAND.resize] = fua;
  return flags;
}

/** Why the request must not reach the device; undefined where it may. Its payload is not looked at. */
export function refusalOf(request: Readonly<Request>, rules: RequestRules): Failure | undefined {
  const { type, flags } = request;
  const allowed = rules.allowedFlags[type];
  if (allowed === undefined || (flags & ~allowed) !== 0) return refuseFlags(request, allowed);
  switch (type) {
    case COMMAND.flush:
      return undefined;
    case COMMAND.resize:
      return resizeRefusal(request, rules.device);
    case COMMAND.write:
      if (rules.mode === 'extended' && (flags & COMMAND_FLAG.payloadLength) === 0) {
        return invalid('A write comes without the flag for its payload');
      }
      return (
        changeRefusal(request, rules) ?? payloadRefusal(request, rules) ?? rangeRefusal(request, rules.device)
      );
    case COMMAND.read:
      return payloadRefusal(request, rules) ?? rangeRefusal(request, rules.device);
    case COMMAND.trim:
    case COMMAND.writeZeroes:
      return changeRefusal(request, rules) ?? rangeRefusal(request, rules.device);
    case COMMAND.blockStatus:
      if ((flags & COMMAND_FLAG.payloadLength) !== 0) return filterRefusal(request, rules.contextCount);
      return statusRefusal(request, rules.device);
    default:
      return rangeRefusal(request, rules.device);
  }
}

/** Of a block status request whose length is known. */
export function statusRefusal(request: Readonly<Request>, device: BlockDevice): Failure | undefined {
  // Unspecified; a success would need an extent, and an extent has a length.
  if (request.lengthBytes === 0) return invalid('A block status of nothing was asked for');
  return rangeRefusal(request, device);
}

function refuseFlags(request: Readonly<Request>, allowed: number | undefined): Failure {
  const { type, flags } = request;
  if (allowed === undefined) return invalid(`Command ${type} is not known here`);
  return invalid(`Command ${type} has flags 0x${flags.toString(16)}, which are not all allowed here`);
}

function changeRefusal(request: Readonly<Request>, rules: RequestRules): Failure | undefined {
  const { type, flags } = request;
  if (rules.readOnly) return { error: NBD_ERROR.EPERM, message: 'The export is read-only' };
  if (type === COMMAND.trim && !rules.device.capabilities.trim) return invalid('The export cannot trim');
  const isFast = rules.fastZeroes && (flags & COMMAND_FLAG.noHole) === 0;
  if ((flags & COMMAND_FLAG.fastZero) === 0 || isFast) return undefined;
  return { error: NBD_ERROR.ENOTSUP, message: 'These zeroes would be no faster than a write' };
}

/** With structured replies the text lets reads that are too large fail with EOVERFLOW, so that clients split. */
function payloadRefusal(request: Readonly<Request>, rules: RequestRules): Failure | undefined {
  const { lengthBytes, type } = request;
  if (lengthBytes <= rules.payloadBytesMax) return undefined;
  const mayOverflow = type === COMMAND.read && rules.mode !== 'simple';
  return {
    error: mayOverflow ? NBD_ERROR.EOVERFLOW : NBD_ERROR.EINVAL,
    message: `${lengthBytes} bytes are more than the ${rules.payloadBytesMax} of the largest payload`,
  };
}

function filterRefusal(request: Readonly<Request>, contextCount: number): Failure | undefined {
  const { lengthBytes } = request;
  const idCount = (lengthBytes - 8) / 4;
  if (Number.isInteger(idCount) && idCount >= 1 && idCount <= contextCount) return undefined;
  return invalid(`A payload of ${lengthBytes} bytes names no contexts of the ${contextCount} agreed on`);
}

function rangeRefusal(request: Readonly<Request>, device: BlockDevice): Failure | undefined {
  const { type, offsetBytes, lengthBytes } = request;
  const { sizeBytes, blockSizeBytes } = device;
  if (offsetBytes + lengthBytes > sizeBytes) {
    const isWriting = type === COMMAND.write || type === COMMAND.writeZeroes;
    return {
      error: isWriting ? NBD_ERROR.ENOSPC : NBD_ERROR.EINVAL,
      message: `Range ${offsetBytes}+${lengthBytes} is not inside the export of ${sizeBytes} bytes`,
      // The first byte that is not there, where it is one of the request.
      ...(offsetBytes <= sizeBytes ? { offsetBytes: sizeBytes } : {}),
    };
  }
  if (offsetBytes % blockSizeBytes !== 0 || lengthBytes % blockSizeBytes !== 0) {
    return invalid(`Range ${offsetBytes}+${lengthBytes} is no multiple of ${blockSizeBytes} bytes`);
  }
  return undefined;
}

/** The offset is the new size. The text says nothing of the length, so nothing is made of one. */
function resizeRefusal(request: Readonly<Request>, device: BlockDevice): Failure | undefined {
  const { offsetBytes: wantedBytes, lengthBytes } = request;
  const { sizeBytes, blockSizeBytes } = device;
  if (lengthBytes !== 0) return invalid(`A resize comes with a length of ${lengthBytes}`);
  if (!Number.isSafeInteger(wantedBytes)) {
    return { error: NBD_ERROR.ENOSPC, message: 'The wanted size is beyond what the server can count' };
  }
  if (wantedBytes % blockSizeBytes !== 0) {
    return invalid(`A size of ${wantedBytes} bytes is no multiple of ${blockSizeBytes} bytes`);
  }
  if (wantedBytes >= sizeBytes) return undefined;
  const message = `The export of ${sizeBytes} bytes is not made smaller, ${wantedBytes} were wanted`;
  return { error: NBD_ERROR.EPERM, message };
}

function invalid(message: string): Failure {
  return { error: NBD_ERROR.EINVAL, message };
}
