export { type ContainerArea, DeviceArea, MemoryArea } from './area.ts';
export {
  type ContainerEntry,
  IntermediateContainer,
  type Slot,
  type SlotWaiter,
} from './intermediate-container.ts';
